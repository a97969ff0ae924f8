"""`advfeat theory`: the covariance option, the table, theory.json and the figures."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from advfeat.theory import claims, figures
from advfeat.theory.command import TheoryConfig, make_task, parse_covariance, run

PNG = b"\x89PNG\r\n\x1a\n"


def quiet():
    return Console(file=io.StringIO(), width=160)


@pytest.mark.slow
def test_the_table_shows_every_claim_on_a_narrow_terminal(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    report = run(TheoryConfig(samples=2000, out=tmp_path), console)
    shown = console.file.getvalue()
    lines = shown.splitlines()
    assert max(map(len, lines[:-1])) <= 80  # the last one has a path, which is not broken
    header = next(line for line in lines if "closed form" in line)
    claim_ends, verdict = header.index("closed form"), header.index("verdict")
    words = " ".join(line[:claim_ends].strip() for line in lines)  # the first column, unwrapped
    for row in report.claims:
        for word in row.claim.split():
            assert word in words, (row.claim, word)
    verdicts = [row.verdict.removesuffix(" as printed") for row in report.claims]
    assert [w for line in lines if (w := line[verdict:].strip()) in set(verdicts)] == verdicts


def test_covariances(tmp_path):
    np.testing.assert_array_equal(parse_covariance("3,0.7,0.2"), [3, 0.7, 0.2])
    np.testing.assert_array_equal(parse_covariance("3, 1", 4), [3, 1, 3, 1])
    np.testing.assert_array_equal(parse_covariance("isotropic:2", 5), np.full(5, 2.0))
    np.testing.assert_allclose(parse_covariance("geometric:1e4", 5), [1, 0.1, 0.01, 1e-3, 1e-4])
    matrix = np.array([[2.0, 0.5], [0.5, 1.0]])
    np.save(tmp_path / "c.npy", matrix)
    np.savetxt(tmp_path / "c.csv", matrix, delimiter=",")
    np.savetxt(tmp_path / "c.txt", [1.0, 2.0])
    np.testing.assert_array_equal(parse_covariance(str(tmp_path / "c.npy")), matrix)
    np.testing.assert_array_equal(parse_covariance(str(tmp_path / "c.csv")), matrix)
    np.testing.assert_array_equal(parse_covariance(str(tmp_path / "c.txt"), 2), [1.0, 2.0])


@pytest.mark.parametrize(
    ("text", "dim", "error", "message"),
    [
        ("3,x", None, ValueError, "covariance should be variances like '3,0.7,0.2'.*got '3,x'"),
        ("isotropic:", None, ValueError, "covariance should be like 'isotropic:10', got 'isotropic:'"),
        ("geometric:-1", None, ValueError, "covariance should be > 0, got -1"),
        ("3,1", 5, ValueError, "dim should be a multiple of the 2 variances given, got 5"),
        ("3,1", 0, ValueError, "dim should be >= 1, got 0"),
        ("missing.npy", None, FileNotFoundError, "covariance: no such file: missing.npy"),
    ],
)
def test_bad_covariances_are_named(text, dim, error, message):
    with pytest.raises(error, match=message):
        parse_covariance(text, dim)


def test_a_pickle_is_not_loaded(tmp_path):
    np.save(tmp_path / "c.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        parse_covariance(str(tmp_path / "c.npy"))
    np.savez(tmp_path / "c", np.ones(3))  # an archive, whatever its name
    (tmp_path / "c.npz").rename(tmp_path / "c.npy")
    with pytest.raises(ValueError, match="c.npy is truncated or altered"):
        parse_covariance(str(tmp_path / "c.npy"))


def test_a_head_that_promises_too_much_takes_no_memory(tmp_path):
    with open(tmp_path / "c.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 44,)})
    with pytest.raises(ValueError, match="c.npy is truncated or altered: .* bytes, expected 140,737,488,355,456"):
        parse_covariance(str(tmp_path / "c.npy"))


def test_the_task_of_a_config_has_the_accuracy_it_says():
    for covariance in ("3,0.7,0.2", "geometric:1e6"):
        task = make_task(TheoryConfig(covariance=covariance, dim=12, seed=4))
        assert task.dim == 12 and task.accuracy() == pytest.approx(0.97724986805, rel=1e-9)


def test_bad_configs_are_named(tmp_path):
    for options, message in (
        ({"eps": 0.0}, "eps should be > 0, got 0"),
        ({"eps": -1.0}, "eps should be > 0, got -1"),
        ({"samples": 10}, "samples should be >= 1000, got 10"),
        ({"seed": -1}, "seed should be >= 0, got -1"),
        ({"covariance": "1,-1"}, "covariance should be positive definite, got the eigenvalue -1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(TheoryConfig(out=tmp_path, **options), quiet())


@pytest.mark.slow
def test_run_prints_one_table_and_writes_the_figures(tmp_path):
    console = quiet()
    report = run(TheoryConfig(out=tmp_path / "deep" / "er", samples=5000, seed=3), console)
    assert report.ok and report.seconds < 60
    text = console.file.getvalue()
    for heading in (
        "claim",
        "closed form",
        "numerical",
        "Monte Carlo",
        "verdict",
        "Theorem 1",
        "Theorem 2",
        "Theorem 3",
    ):
        assert heading in text
    names = {"figure4.png", "figure14.png", "theorem2.png", "relaxation.png", "theorem3.png"}
    assert {figure.name for figure in report.figures} == names
    for figure in report.figures:
        assert figure.read_bytes().startswith(PNG) and 5_000 < figure.stat().st_size < 150_000
    saved = json.loads((tmp_path / "deep" / "er" / "theory.json").read_text())
    assert saved["config"]["covariance"] == "3,0.7,0.2" and saved["config"]["dim"] == 3
    rows = {(row["topic"], row["claim"]): row for row in saved["claims"]}
    assert len(rows) == len(report.claims)
    assert not {row["verdict"] for row in saved["claims"]} - {claims.HOLDS, claims.REFUTED}
    gap = rows["Theorem 1", "L_adv - L, loss without the half, penalty C |delta|^2"]
    assert gap["closed"] == pytest.approx(8.6211, abs=1e-4) and gap["numeric"] == pytest.approx(8.6211, abs=1e-4)


def test_a_wrong_closed_form_fails(monkeypatch, tmp_path):
    from advfeat.theory import theorem1

    monkeypatch.setattr(theorem1, "vulnerability", lambda *a, **k: 9.0)
    rows = list(claims.theorem1_claims(make_task(TheoryConfig()), 2000, 0))
    assert claims.FAILS in {row.verdict for row in rows}


def test_verdicts():
    assert claims.compare("t", "c", 1.0, 1.0 + 1e-7, (1.02, 0.01)).verdict == claims.HOLDS
    assert claims.compare("t", "c", 1.0, 1.001).verdict == claims.FAILS
    assert claims.compare("t", "c", 1.0, None, (1.1, 0.01)).verdict == claims.FAILS
    assert claims.compare("t", "c", 1.0).verdict == claims.UNCHECKED


def test_a_high_dimension_leaves_optimisers_out_and_says_so():
    task = make_task(TheoryConfig(covariance="geometric:100", dim=500))
    rows = [*claims.theorem1_claims(task, 1000, 0), *claims.theorem2_claims(task, 0.8, 1000, 0)]
    verdicts = {row.claim: row.verdict for row in rows}
    assert verdicts["lambda (numeric: minimax by BFGS)"] == claims.UNCHECKED
    assert claims.FAILS not in verdicts.values()


def test_figures_do_not_depend_on_the_display(tmp_path):
    import matplotlib

    backend = matplotlib.get_backend(auto_select=False)
    task = make_task(TheoryConfig())
    figures.robust_spectrum(tmp_path / "a.png", task)
    assert matplotlib.get_backend(auto_select=False) == backend
    first = (tmp_path / "a.png").read_bytes()
    figures.robust_spectrum(tmp_path / "a.png", task)
    assert (tmp_path / "a.png").read_bytes() == first


def test_what_is_no_covariance_is_said(tmp_path):
    (tmp_path / "bad.csv").write_text("a,b")
    with pytest.raises(ValueError, match="bad.csv should be numbers"):
        parse_covariance(str(tmp_path / "bad.csv"))
    for text in ("isotropic:1e300", "1e60,1"):
        with pytest.raises(ValueError, match="at most 1e"):
            make_task(TheoryConfig(covariance=text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "1e13"}, r"covariance should be at most 1e\+12, got 1e\+13"),
        ({"eps": 2000.0}, "eps should be at most 1732.05, 1000 standard deviations of the task, got 2000"),
        ({"eps": 0.8, "covariance": "1e-8"}, "eps should be at most 0.1, 1000 standard deviations"),
    ],
)
def test_tasks_that_float64_cannot_tell_are_refused(tmp_path, options, message):
    """Their claims failed by rounding alone, as if the theorems were wrong."""
    with pytest.raises(ValueError, match=message):
        run(TheoryConfig(out=str(tmp_path / "theory"), **options))
    assert not (tmp_path / "theory").exists()
