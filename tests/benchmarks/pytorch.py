"""The same training as bare PyTorch loops: no framework around them, data in memory, dense, gathered by a random order.

Know before reading: PyTorch. Formulas are those that its users write (as in scvi-tools' likelihoods, epsilons included).
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks import work

DEVICE = "cuda" if work.ON_GPU else "cpu"  # the data are there as well, all of them


def block(n_in, n_out, dropout=0.0):
    return nn.Sequential(
        nn.Linear(n_in, n_out),
        nn.BatchNorm1d(n_out, momentum=0.01, eps=1e-3),
        nn.ReLU(),
        nn.Dropout(dropout),
    )


class BareSCVI(nn.Module):
    def __init__(self, n_genes, zero_inflated):
        super().__init__()
        self.encoder = block(n_genes, work.N_HIDDEN, work.DROPOUT)
        self.mean, self.log_var = (nn.Linear(work.N_HIDDEN, work.N_LATENT) for _ in range(2))
        self.decoder = block(work.N_LATENT, work.N_HIDDEN)
        self.rho = nn.Linear(work.N_HIDDEN, n_genes)
        self.zi = nn.Linear(work.N_HIDDEN, n_genes) if zero_inflated else None
        self.log_theta = nn.Parameter(torch.randn(n_genes))

    def loss(self, x, kl_weight=1.0, eps=1e-8):
        h = self.encoder(torch.log1p(x))
        q = torch.distributions.Normal(self.mean(h), (torch.exp(self.log_var(h)) + 1e-4).sqrt())
        h = self.decoder(q.rsample())
        mu, theta = F.softmax(self.rho(h), -1) * x.sum(1, keepdim=True), self.log_theta.exp()
        if self.zi is None:
            log_theta_mu = torch.log(theta + mu + eps)
            log_p = (
                theta * (torch.log(theta + eps) - log_theta_mu)
                + x * (torch.log(mu + eps) - log_theta_mu)
                + torch.lgamma(x + theta)
                - torch.lgamma(theta)
                - torch.lgamma(x + 1)
            )
        else:
            log_p = zinb(x, mu, theta, self.zi(h), eps)
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
        return (kl_weight * kl - log_p.sum(1)).mean()


def zinb(x, mu, theta, pi, eps):
    softplus_pi, log_theta, log_theta_mu = (
        F.softplus(-pi),
        torch.log(theta + eps),
        torch.log(theta + mu + eps),
    )
    pi_theta_log = -pi + theta * (log_theta - log_theta_mu)
    zero = F.softplus(pi_theta_log) - softplus_pi
    nonzero = (
        -softplus_pi
        + pi_theta_log
        + x * (torch.log(mu + eps) - log_theta_mu)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    return torch.where(x < eps, zero, nonzero)


class BareAE(nn.Module):
    def __init__(self, widths, variational):
        super().__init__()
        down = [
            layer for a, b in zip(widths[:-2], widths[1:]) for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        up = [
            layer
            for a, b in zip(widths[:1:-1], widths[-2:0:-1])
            for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        self.down, self.up = (
            nn.Sequential(*down),
            nn.Sequential(*up, nn.Linear(widths[1], widths[0])),
        )
        self.mean = nn.Linear(*widths[-2:])
        self.log_var = nn.Linear(*widths[-2:]) if variational else None

    def loss(self, x):
        h = self.down(x)
        if self.log_var is None:
            return F.mse_loss(self.up(self.mean(h)), x)
        q = torch.distributions.Normal(self.mean(h), torch.exp(0.5 * self.log_var(h)))
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
        log_p = torch.distributions.Normal(self.up(q.rsample()), 1.0).log_prob(x).sum(1)
        return (kl - log_p).mean()


def epochs(model, x, n):
    """Train n epochs; returns seconds an epoch."""
    model.to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), work.RATE)
    started = time.perf_counter()
    for _ in range(n):
        order = torch.randperm(len(x), device=DEVICE)
        for rows in order.split(work.BATCH):
            optimizer.zero_grad()
            loss = model.loss(x[rows])
            loss.backward()
            optimizer.step()
            loss.item()
    return (time.perf_counter() - started) / n


def job(name, n):
    """What `worker` calls again and again: trains for n epochs, returns seconds an epoch."""
    torch.manual_seed(0)
    if name.startswith("scvi"):
        _, likelihood, data = name.split("-")
        x = torch.from_numpy(work.counts(data).toarray()).to(DEVICE)
        return lambda: epochs(BareSCVI(x.shape[1], likelihood == "zinb"), x, n)
    x = torch.from_numpy(work.rows()).to(DEVICE)
    widths = {"ae": work.AE_WIDTHS, "vae": work.VAE_WIDTHS}[name]
    return lambda: epochs(BareAE(widths, name == "vae"), x, n)


def version() -> str:
    return f"PyTorch {torch.__version__}" + (", CUDA" if work.ON_GPU else "")
