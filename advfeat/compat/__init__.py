"""Drop-in replacements for torchattacks and MadryLab/robustness on this library's kernels.

They have the names and signatures of ``PGD``, ``PGDL2``, ``FGSM``, ``MIFGSM`` and ``MultiAttack`` of torchattacks, and
of ``L2Step`` and ``LinfStep`` of robustness.

    import advfeat.compat as torchattacks                      # was: import torchattacks
    from advfeat.compat import L2Step                          # was: from robustness.attack_steps import L2Step

An existing script needs only this line changed. The differences are:

* The objective is the margin, which never saturates, instead of the mean cross-entropy. In exact arithmetic both give
  the same steps (the per-sample direction is the same), but confident samples are attacked too, and no floor of 1e-10
  slows samples whose gradient is small. Robust accuracies can therefore only come out lower, and closer to the truth.
* PGDL2 starts uniformly in the ball (torchattacks' start is denser at the centre), and so does L2Step.random_perturb
  (it was on the sphere). Random numbers are drawn from a seed taken from torch's global generator, so
  ``torch.manual_seed`` works.
* The model's submodules keep their own training flags, and parameters their ``.grad``; the attacks also work under
  ``no_grad``.
"""

from __future__ import annotations

from advfeat.compat.robustness import L2Step, LinfStep
from advfeat.compat.torchattacks import FGSM, MIFGSM, PGD, PGDL2, MultiAttack

__all__ = ["FGSM", "MIFGSM", "PGD", "PGDL2", "L2Step", "LinfStep", "MultiAttack"]

_OURS = {
    "CW": "advfeat.PGD(advfeat.L2(eps), steps=..., objective=advfeat.CW())",
    "APGD": "advfeat.APGD(threat)",
    "APGDT": "advfeat.Auto(threat)",
    "AutoAttack": "advfeat.AutoAttack(threat)",
    "FAB": "advfeat.FAB(threat)",
    "Square": "advfeat.Square(threat)",
    "BIM": "advfeat.PGD(advfeat.Linf(eps), steps=..., step_size=...)",
}


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    ours = f": {_OURS[name]} does its work" if name in _OURS else ""
    raise AttributeError(
        f"advfeat.compat offers PGD, PGDL2, FGSM, MIFGSM and MultiAttack of torchattacks, and not {name}{ours}"
    )
