"""A norm is one class: what depends on it asks it, also of a norm that is not there yet."""

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tensor_source import TensorSource
from torch import nn

from advfeat import L1, L2, PGD, Linf
from advfeat.attacks.inputs import _warn_of_radius
from advfeat.cli.options import Norm
from advfeat.datasets.rounding import quantise
from advfeat.evaluation import evaluate
from advfeat.threat import NORMS, Threat, check_norm

F64 = torch.float64


@dataclass(frozen=True, eq=False, repr=False)
class L3(Threat):
    """A norm from elsewhere, with steps along the gradient and a projection that is only right towards the centre."""

    norm, title = "l3", "L3"
    order, dual_order = 3.0, 1.5

    def _step_(self, x, grad, x0, step_size, grad_status):
        x += step_size * grad / grad.flatten(1).abs().sum(1).view(-1, *[1] * (x.dim() - 1))
        self._project_(x, x0)

    def _project_(self, x, x0):
        length = self.length((x - x0).flatten(1)).view(-1, *[1] * (x.dim() - 1))
        x.copy_((x0 + (x - x0) * (self.eps / length.clamp(min=1e-30)).clamp(max=1)).clamp(self.lo, self.hi))


def test_each_norm_by_its_name():
    assert set(NORMS) == set(get_args(Norm)) == {"l1", "l2", "linf"}
    for name, kind in NORMS.items():
        threat = Threat.of(name, 0.25, -1, 2, unit=0.5)
        assert type(threat) is kind and (threat.eps, threat.lo, threat.hi, threat.unit) == (0.25, -1.0, 2.0, 0.5)
        assert kind.usual_radii == tuple(sorted(kind.usual_radii)) and kind.title
    with pytest.raises(ValueError, match=r'norm should be "l2", "linf" or "l1", got \'L_2\'; did you mean l2\?'):
        Threat.of("L_2", 0.5)
    for wrong in (2, None, ["l2"]):
        with pytest.raises(ValueError, match="norm should be"):
            check_norm(wrong)


@given(st.sampled_from([L1, L2, Linf, L3]), st.integers(0, 5), st.integers(0, 7), st.integers(0, 2**31))
def test_length_and_dual(kind, rows, dim, seed):
    """Hoelder: |<w, d>| <= ||w||_q ||d||_p, with equality for the worst d."""
    g = torch.Generator().manual_seed(seed)
    d, w = (torch.randn(rows, dim, generator=g, dtype=F64) for _ in range(2))
    assert 1 / kind.order + 1 / kind.dual_order == 1
    length = kind.length(d)
    own = [float(torch.linalg.vector_norm(row, kind.order)) if dim else 0.0 for row in d]
    assert torch.allclose(length, torch.tensor(own, dtype=F64))
    dual = torch.linalg.vector_norm(w, kind.dual_order, dim=1) if dim else torch.zeros(rows, dtype=F64)
    assert ((w * d).sum(1).abs() <= dual * length + 1e-12).all()
    corners = torch.ones(1, max(dim, 1), dtype=F64) * 0.5
    assert float(kind.length(corners)) == pytest.approx(kind.holds_the_box(0.5, max(dim, 1)))


@given(st.sampled_from([L1, L2, Linf, L3]), st.sampled_from(["uint8", "float16"]), st.integers(0, 2**31))
def test_rounding_stays_in_the_ball_of_any_norm(kind, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randint(0, 256, (4, 3, 2, 2), generator=g) / 255.0
    eps = float(torch.rand((), generator=g)) * kind.holds_the_box(0.2, 12)
    direction = torch.randn(x0.shape, generator=g)
    length = kind.length(direction.flatten(1)).view(-1, 1, 1, 1)
    x = (x0 + eps * direction / length).clamp(0, 1)
    stored = quantise(x, x0, kind(eps), dtype).double()
    images = stored / 255 if dtype == "uint8" else stored
    assert (kind.length((images - x0.double()).flatten(1)) <= eps + 1e-6).all()
    assert ((images - x.double()).abs() <= (1 if dtype == "uint8" else 2) / 255 + 1e-6).all()


def test_an_evaluation_measures_distances_in_the_attacks_own_norm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.rand(30, 3, 2, 2)
    source = TensorSource(x, net(x).argmax(1), tuple("abc"))
    found = evaluate(net, source, attacks=[("l3", PGD(L3(0.6), steps=10, step_size=0.4))])
    (robust,) = found.robustness
    assert 0.5 < robust.largest_distance <= 0.6 + 1e-5 and robust.accuracy.value < 1


def test_a_ball_that_holds_the_box_is_told_for_any_norm():
    with pytest.warns(RuntimeWarning, match="so it bounds nothing"):
        _warn_of_radius(L3(13.0), 12)
    with pytest.warns(RuntimeWarning, match="so it bounds nothing"):
        _warn_of_radius(L2(4.0), 12)
