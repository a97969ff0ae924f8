"""Several threads in one process: attacks on one model, and random numbers that belong to all of them."""

import threading

import pytest
import torch
from torch import nn

from advfeat import APGD, PGD, Linf
from advfeat.attacks.no_trace import _is_only_thread
from advfeat.models import evaluating
from advfeat.training import TrainConfig, train


def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    net.train()
    net[1].eval()  # frozen, as users have them
    return net


def data(seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(8, 3, 8, 8, generator=g), torch.randint(0, 10, (8,), generator=g)


class Gate(nn.Module):
    """Stops the thread that runs it, at its n-th call, until it is let on."""

    def __init__(self, inner: nn.Module, at: int) -> None:
        super().__init__()
        self.inner, self.at, self.calls = inner, at, 0
        self.reached, self.go_on = threading.Event(), threading.Event()

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            self.reached.set()
            assert self.go_on.wait(60)
        return self.inner(x)


def in_thread(work):
    out = {}

    def run():
        try:
            out["result"] = work()
        except Exception as error:
            out["error"] = error

    thread = threading.Thread(target=run, name="users")
    thread.start()
    return thread, out


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_two_threads_attack_one_model(first_ends_first):
    """The second saw eval mode and left it so; or the first put train mode back under the second's feet."""
    net, (x, y) = model(), data()
    attack = PGD(Linf(0.03), steps=6)
    expected, flags = attack(net, x, y), [m.training for m in net.modules()]
    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    gates = [Gate(net, 2), Gate(net, 4)]
    threads = []
    for gate in gates:
        threads.append(in_thread(lambda gate=gate: attack(gate, x, y)))
        assert gate.reached.wait(60)
    order = (0, 1) if first_ends_first else (1, 0)
    for i in order:
        gates[i].go_on.set()
        threads[i][0].join(60)
    for _, out in threads:
        assert torch.equal(out["result"], expected)
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(value, statistics[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "use", [lambda net, x, y: PGD(Linf(0.03), steps=1)(net, x, y), lambda net, x, y: evaluate(net, x)]
)
def test_a_model_that_is_put_into_train_mode_during_an_attack_is_refused(use):
    """It would be attacked, or trained, in the wrong mode without a word."""
    net, (x, y) = model(), data()
    gate = Gate(net, 2)
    thread, out = in_thread(lambda: PGD(Linf(0.03), steps=3)(gate, x, y))
    assert gate.reached.wait(60)
    net.train()
    with pytest.raises(RuntimeError, match="should stay in eval mode while another thread.*put into train mode"):
        use(net, x, y)
    net.eval()
    gate.go_on.set()
    thread.join(60)
    assert "result" in out and net.training and net[3].training and not net[1].training


def evaluate(net, x):
    with evaluating(net):
        return net(x)


def test_many_threads_at_random():
    net, (x, y) = model(), data()
    attacks = [PGD(Linf(0.03), steps=k, keep=keep) for k in (3, 9, 27) for keep in ("last", "best")]
    attacks += [APGD(Linf(0.03), steps=8), PGD(Linf(0.03), steps=9, stop="success")]
    expected, flags = [a(net, x, y) for a in attacks], [m.training for m in net.modules()]
    mean = net[1].running_mean.clone()
    started = [in_thread(lambda a=a: [a(net, x, y) for _ in range(3)]) for a in attacks]
    for thread, _ in started:
        thread.join(120)
    for (_, out), want in zip(started, expected, strict=True):
        assert all(torch.equal(got, want) for got in out["result"])
    assert [m.training for m in net.modules()] == flags and torch.equal(net[1].running_mean, mean)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 10)

    def forward(self, x):
        return self.layer((x + 0.1 * torch.randn_like(x)).flatten(1))


def test_another_threads_random_numbers_do_not_come_twice(monkeypatch):
    """The state of the generator was put back at the end: what the other thread had drawn meanwhile came again."""
    x, y = data()
    gate = Gate(Noisy(), 2)
    torch.manual_seed(0)
    thread, _ = in_thread(lambda: PGD(Linf(0.03), steps=3)(gate, x, y))
    assert gate.reached.wait(60)
    during = torch.rand(4)
    gate.go_on.set()
    thread.join(60)
    assert not torch.equal(torch.rand(4), during)
    # Where nobody else is there the state is as before, whatever the model draws.
    monkeypatch.setattr("advfeat.attacks.no_trace._is_only_thread", lambda: True)
    before = torch.get_rng_state()
    PGD(Linf(0.03), steps=3)(gate.inner, x, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_thread_that_may_draw_is_seen():
    stop = threading.Event()
    for name, others in (("advfeat-reads", False), ("tqdm_monitor", False), ("users", True)):
        threads = [threading.Thread(target=stop.wait, args=(60,), name=name)]
        before = _is_only_thread()
        threads[0].start()
        assert _is_only_thread() == (before and not others)
        stop.set()
        threads[0].join(60)
        stop.clear()


def test_a_model_that_draws_nothing_leaves_the_state_alone_among_threads():
    net, (x, y) = model(), data()
    stop = threading.Event()
    thread, _ = in_thread(lambda: stop.wait(60))
    before = torch.get_rng_state()
    PGD(Linf(0.03), steps=3, random_start=True, seed=0)(net, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    stop.set()
    thread.join(60)


def digits_of(net, epochs=1):
    images, labels = data()
    source = torch.utils.data.TensorDataset(images, labels)
    source.classes = [str(digit) for digit in range(10)]
    return lambda: train(TrainConfig(epochs=epochs, batch_size=4), source, model=net)


def test_a_model_in_training_is_the_training_threads_own():
    """An attack beside it would put it into eval mode in the middle of an epoch."""
    net, (x, y) = model(), data()
    gate = Gate(net, 1)
    thread, out = in_thread(digits_of(gate))
    assert gate.reached.wait(60)
    with pytest.raises(RuntimeError, match="should not be attacked or evaluated while another thread trains it"):
        PGD(Linf(0.03), steps=2)(net, x, y)
    with pytest.raises(RuntimeError, match="this thread alone while it is trained"):
        digits_of(net)()
    gate.go_on.set()
    thread.join(60)
    assert len(out["result"].history) == 1
    PGD(Linf(0.03), steps=2)(net, x, y)  # afterwards it is anyone's


def test_a_model_under_attack_is_not_trained_meanwhile():
    net, (x, y) = model(), data()
    gate = Gate(net, 2)
    thread, out = in_thread(lambda: PGD(Linf(0.03), steps=4)(gate, x, y))
    assert gate.reached.wait(60)
    with pytest.raises(RuntimeError, match="this thread alone while it is trained"):
        digits_of(net)()
    gate.go_on.set()
    thread.join(60)
    assert out["result"].shape == x.shape and not net.training == net[1].training
    assert len(digits_of(net)().history) == 1
