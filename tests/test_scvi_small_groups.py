"""What the defaults of training make of few cells: measured in tests/benchmarks/few_cells.py."""

import numpy as np

from demos import show
from models.counts import read
from tests.benchmarks.few_cells import auroc_in_z, group_in_z, held_out_elbo


def test_the_score_knows_a_group_that_is_there_and_none_that_is_not():
    rng = np.random.default_rng(0)
    in_group = np.arange(1000) < 20
    z = rng.standard_normal((1000, 5))
    assert abs(np.mean([auroc_in_z(z, in_group, seed) for seed in range(20)]) - 0.5) < 0.15
    z[in_group, 2] += 4.0
    assert auroc_in_z(z, in_group) > 0.95


def test_the_latent_space_knows_a_group_of_20_in_1000():
    """Without a prior on the weights: 0.92, and 0.94 from the counts themselves."""
    assert group_in_z(seed=0, weight_decay=None) > 0.8


def test_a_model_of_100_cells_foresees_others_as_well_as_without_decay():
    """Cells of cortex, in nats of held-out ELBO."""
    x = read(show.DATA / "cortex.npz").X
    default, none = [held_out_elbo(x, 100, 0, decay) for decay in (None, 0.0)]
    assert default > none - 10.0
