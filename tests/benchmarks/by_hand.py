"""The same scVI step written by hand in NumPy: no engine, no tape, formulas as on paper, forward and backward in one function.

Know before reading: models/scvi.py. What ours takes more than this is what the engine costs; what it takes less is what
its kernels win. Dispersion per gene, observed library, Adam; batch normalisation and dropout as in the model.
"""

from __future__ import annotations

import time

import numpy as np
from scipy import special

from tests.benchmarks import work


class HandWritten:
    """Weights in one flat array, their gradients in another; `step(x, kl_weight, rng)` trains on dense counts."""

    def __init__(self, n_genes, zero_inflated):
        rng, h, z = np.random.default_rng(0), work.N_HIDDEN, work.N_LATENT
        shapes = dict(
            w1=(n_genes, h),
            g1=(h,),
            b1=(h,),
            wm=(h, z),
            bm=(z,),
            wv=(h, z),
            bv=(z,),
            w2=(z, h),
            g2=(h,),
            b2=(h,),
            wr=(h, n_genes),
            br=(n_genes,),
            log_theta=(n_genes,),
        )
        if zero_inflated:
            shapes.update(wz=(h, n_genes), bz=(n_genes,))
        ends = np.cumsum([int(np.prod(s)) for s in shapes.values()])
        self.flat, self.d_flat, self.m, self.v = np.zeros((4, ends[-1]), np.float32)
        self.p, self.d = [
            {k: a[e - int(np.prod(s)) : e].reshape(s) for (k, s), e in zip(shapes.items(), ends)}
            for a in (self.flat, self.d_flat)
        ]
        for name, a in self.p.items():
            a[...] = (
                1.0
                if name[0] == "g"
                else rng.uniform(-1, 1, a.shape) / np.sqrt(a.shape[0])
                if a.ndim == 2
                else 0.0
            )
        self.n_steps, self.zero_inflated = 0, zero_inflated

    def step(self, x, kl_weight, rng):
        """One step of Adam on the counts x (n, n_genes), dense float32. Returns the loss."""
        p, d, n = self.p, self.d, len(x)
        logged = np.log(x + 1.0)
        h, back1 = normed_relu(logged @ p["w1"], p["g1"], p["b1"])
        mask = (rng.random(h.shape, dtype=np.float32) >= work.DROPOUT).astype(np.float32) / (
            1 - work.DROPOUT
        )
        h *= mask
        mean, e = h @ p["wm"] + p["bm"], np.exp(h @ p["wv"] + p["bv"])
        std, eps = np.sqrt(e + 1e-4), rng.standard_normal(mean.shape, dtype=np.float32)
        z = mean + std * eps
        k, back2 = normed_relu(z @ p["w2"], p["g2"], p["b2"])
        logits, library = k @ p["wr"] + p["br"], x.sum(axis=1, keepdims=True)
        zi = k @ p["wz"] + p["bz"] if self.zero_inflated else None
        log_p, d_logits, d["log_theta"][...], d_zi = likelihood(
            x, logits, library, p["log_theta"], zi
        )
        kl = 0.5 * (mean * mean + std * std - 1.0) - np.log(std)
        d["wr"][...], d["br"][...] = k.T @ d_logits, d_logits.sum(axis=0)
        dk = d_logits @ p["wr"].T
        if self.zero_inflated:
            d["wz"][...], d["bz"][...] = k.T @ d_zi, d_zi.sum(axis=0)
            dk += d_zi @ p["wz"].T
        dh, d["g2"][...], d["b2"][...] = back2(dk)
        d["w2"][...], dz = z.T @ dh, dh @ p["w2"].T
        d_mean, d_std = dz + kl_weight / n * mean, dz * eps + kl_weight / n * (std - 1.0 / std)
        d_var = d_std * 0.5 / std * e
        d["wm"][...], d["bm"][...], d["wv"][...], d["bv"][...] = (
            h.T @ d_mean,
            d_mean.sum(0),
            h.T @ d_var,
            d_var.sum(0),
        )
        dh, d["g1"][...], d["b1"][...] = back1((d_mean @ p["wm"].T + d_var @ p["wv"].T) * mask)
        d["w1"][...] = logged.T @ dh
        self.adam()
        return -(log_p - kl_weight * kl.sum(axis=1)).mean()

    def adam(self, b1=0.9, b2=0.999, eps=1e-8):
        self.n_steps += 1
        self.m += (1 - b1) * (self.d_flat - self.m)
        self.v += (1 - b2) * (self.d_flat**2 - self.v)
        scale = work.RATE / (1 - b1**self.n_steps)
        self.flat -= scale * self.m / (np.sqrt(self.v / (1 - b2**self.n_steps)) + eps)


def normed_relu(x, weight, bias):
    """relu of batch normalisation, and the function that takes its gradient to those of x, weight and bias."""
    std = np.sqrt(x.var(axis=0) + 1e-3)
    u = (x - x.mean(axis=0)) / std
    y = np.maximum(weight * u + bias, 0.0)

    def back(g):
        g = g * (y > 0)
        d_weight, d_bias = (g * u).sum(axis=0), g.sum(axis=0)
        return weight / std * (g - d_bias / len(g) - u * (d_weight / len(g))), d_weight, d_bias

    return y, back


def likelihood(x, logits, library, log_theta, zi):
    """log p of each cell, and minus its mean's gradients for logits, log_theta and zi (None for NB)."""
    n, theta = len(x), np.exp(log_theta)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    rho = e / e.sum(axis=1, keepdims=True)
    mu = rho * library
    total = theta + mu
    log_ratio = np.log(theta / total)
    at = np.nonzero(x)
    xs, ts = x[at], theta[at[1]]
    log_p = theta * log_ratio
    log_p[at] += (
        special.gammaln(xs + ts)
        - special.gammaln(ts)
        - special.gammaln(xs + 1)
        + xs * np.log(mu[at] / total[at])
    )
    d_mu, u = theta * (x - mu) / total, (x - mu) / total
    d_theta = theta * (log_ratio - u)
    d_theta[at] += ts * (special.digamma(xs + ts) - special.digamma(ts))
    d_zi = None
    if zi is not None:
        a, zero = np.exp(-np.abs(zi)), x == 0
        pi = np.where(zi > 0, 1.0, a) / (1.0 + a)
        nb_zero = np.exp(np.where(zero, log_p, 0.0))
        p_zero = pi + (1.0 - pi) * nb_zero
        log_p = np.where(zero, np.log(p_zero), log_p + np.log(1.0 - pi))
        share = np.where(zero, (1.0 - pi) * nb_zero / p_zero, 1.0)
        d_mu, d_theta = d_mu * share, d_theta * share
        d_zi = -(np.where(zero, 1.0 - share, 0.0) - pi) / n
    d_logits = -(d_mu - rho * d_mu.sum(axis=1, keepdims=True)) / n
    return log_p.sum(axis=1), d_logits, -d_theta.sum(axis=0) / n, d_zi


def job(name: str, n: int):
    """What `worker` calls again and again: trains for n epochs, returns seconds an epoch."""
    _, kind, data = name.split("-")
    x = work.counts(data).toarray()

    def run():
        model, rng = HandWritten(x.shape[1], kind == "zinb"), np.random.default_rng(0)
        started = time.perf_counter()
        for epoch in range(n):
            order = rng.permutation(len(x))
            for i in range(0, len(x), work.BATCH):
                loss = model.step(x[order[i : i + work.BATCH]], min(1.0, epoch / 10), rng)
                assert np.isfinite(loss)
        return (time.perf_counter() - started) / n

    return run


def version() -> str:
    return f"NumPy {np.__version__}"
