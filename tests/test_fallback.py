"""Without the compiled extension plain torch does the work, and says so once."""

import os
import subprocess
import sys

_WITHOUT = """
import sys, warnings
sys.modules["advfeat._C"] = None  # an import of it fails
import torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from advfeat import PGD, L2, Linf, ops
    x0 = torch.rand(4, 3)
    x = ops.l2_step(x0, torch.randn(4, 3), x0, 0.1, 0.5)
    assert abs(float((x - x0).norm(dim=1).max())) <= 0.1 + 1e-6
    y = x0.clone()
    status = torch.zeros(4, 2, dtype=torch.int32)
    assert ops.linf_step_(y, torch.zeros(4, 3), x0, 0.1, 0.5, None, None, grad_status=status) is y
    assert status[:, 0].tolist() == [1] * 4
    for threat in (L2(0.5), Linf(0.1)):
        attack = PGD(threat, steps=2, random_start=True, restarts=2)
        attack(torch.nn.Linear(3, 2), x0, torch.zeros(4, dtype=torch.int64))
print(len([w for w in seen if "advfeat.ops runs in plain torch on cpu" in str(w.message)]))
"""


def test_without_the_extension_plain_torch_does_the_work_and_says_so_once():
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
