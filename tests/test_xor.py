"""XOR by EP: every seed is solved, and what "solved after n steps" means."""

import json

import pytest

from experiments.xor import BY, OPTIMIZERS, Config, run, solve


def test_smoke_solves_every_seed_and_draws_the_curve(tmp_path):
    rows = run(Config(smoke=True, steps=60, out=tmp_path))
    assert [row["optimizer"] for row in rows] == list(OPTIMIZERS)
    for row in rows:
        assert row["solved"] == "3 of 3"
        assert row["settled"] == 1
        assert row["most steps"] == max(row["steps"])
        curve = [row[f"by {step}"] for step in BY]
        assert curve == sorted(curve)
        assert curve[BY.index(80)] == 1
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["solved"] == "3 of 3"
    assert (tmp_path / "solved.png").stat().st_size > 0
    assert (tmp_path / "finished").exists()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_seed_is_solved_from_the_step_on_at_which_nothing_is_wrong_any_more(name):
    steps, settled = solve(name, 0, Config(steps=40))
    assert settled == 1
    assert solve(name, 0, Config(steps=steps))[0] == steps
    assert solve(name, 0, Config(steps=steps - 1))[0] is None


@pytest.mark.parametrize("setting", ["seeds", "steps"])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} = 0"):
        Config(**{setting: 0})
