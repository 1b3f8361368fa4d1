"""The study of devices: its grid, its tables by hand, what a failure costs, that it goes on, what it refuses."""

import csv
import dataclasses
import json
import math
from concurrent.futures import Future

import pytest
import xarray

import devices
from circuits.tiki_taka import TikiTakaChip
from experiments import device_study, mnist_seeds
from experiments.crossbar_mnist import WRITES, Config
from experiments.device_study import COLUMNS, RULES, SUMMARY, OnCell, Point, StudyConfig, run, train
from experiments.executors import WorkerLost


def study(out, **settings) -> StudyConfig:
    """Two technologies, one of them without pulses, at two noises, two seeds from 1; computed in this process."""
    grid = {"devices": ("rpu", "ideal"), "read_noise": (None, 0.02), "seeds": 2, "seed": 1}
    return StudyConfig(**{"dataset": "digits", "workers": 1, "out": out, **grid, **settings})


class Toy:
    """Stands for training: accuracies made up, and a list of what was computed. Cannot do what is in `fails`."""

    def __init__(self, *fails: str):
        self.fails, self.computed = fails, []

    def __call__(self, point: Point, config: OnCell) -> dict:
        self.computed.append((point.name, point.seed))
        if point.device in self.fails:
            raise RuntimeError(f"{point.device} burnt\nout")
        digital, chip = {1: 0.9, 2: 0.92}[point.seed], {1: 0.88, 2: 0.86}[point.seed]
        noise = point.read_noise or 0
        return {
            "accuracy": digital if point.is_digital else chip - noise,
            "validation": 0.5,
            "settled": 1.0,
            "seconds": 2.0 * point.seed,
            "pulses/device": 30.0 + point.seed,
            "data": config.dataset,
        }


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(device_study.study_figures, "draw", lambda *_: None)


# -- tables -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_rows_and_intervals_by_hand(tmp_path):
    rows = run(study(tmp_path), Toy())
    assert [(r["device"], r["read_noise"], r["seed"], r["status"]) for r in rows] == [
        ("digital", None, 1, "done"),
        ("digital", None, 2, "done"),
        ("rpu", None, 1, "done"),
        ("rpu", None, 2, "done"),
        ("rpu", 0.02, 1, "done"),
        ("rpu", 0.02, 2, "done"),
        ("ideal", None, 1, "done"),
        ("ideal", None, 2, "done"),
        ("ideal", 0.02, 1, "skipped"),
        ("ideal", 0.02, 2, "skipped"),
    ]
    quiet, noisy, ideal = rows[2:4], rows[4:6], rows[6:8]
    assert [r["difference"] for r in quiet] == pytest.approx([-0.02, -0.06])
    assert [r["difference"] for r in noisy] == pytest.approx([-0.04, -0.08])
    assert [r["digital_accuracy"] for r in noisy] == [0.9, 0.92]
    assert quiet[0]["steps"] == pytest.approx(1250)  # 2 / dw_min of 0.0016
    assert [r["pulses"] for r in quiet] == [31, 32]
    assert all("steps" not in r for r in ideal)
    assert "cannot have read noise" in rows[8]["error"]

    lines = {(x["device"], x["read_noise"]): x for x in json.loads((tmp_path / "results.json").read_text())}
    line = lines["rpu", None]
    # t(0.975, 1) = 12.7062 from tables; two values d apart have the deviation d / sqrt 2
    assert (line["runs"], line["missing"]) == (2, 0)
    assert line["accuracy"] == pytest.approx(0.87)
    assert line["accuracy_half"] == pytest.approx(12.7062 * 0.02 / 2, rel=1e-5)
    assert line["difference"] == pytest.approx(-0.04)
    assert line["difference_half"] == pytest.approx(12.7062 * 0.04 / 2, rel=1e-5)
    assert line["difference %"] == "-4.00 ± 25.41"
    assert (line["digital_accuracy"], line["pulses"], line["seconds"]) == pytest.approx((0.91, 31.5, 3.0))
    skipped = lines["ideal", 0.02]
    assert (skipped["runs"], skipped["missing"], skipped["accuracy %"]) == (0, 2, None)
    assert list(lines) == [("digital", None), ("rpu", None), ("ideal", None), ("rpu", 0.02), ("ideal", 0.02)]


@pytest.mark.usefixtures("undrawn")
def test_csv_and_hdf5_hold_the_same_table(tmp_path):
    rows = run(study(tmp_path), Toy())
    with open(tmp_path / "runs.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(COLUMNS)
    with xarray.open_dataset(tmp_path / "runs.h5", engine="h5netcdf") as table:
        assert table.sizes["run"] == len(rows) == len(read)
        assert table.seconds.attrs == {"units": "s", "long_name": "time to train"}
        assert json.loads(table.attrs["config"])["devices"] == ["rpu", "ideal"]
        for name, column in COLUMNS.items():
            for row, line, value in zip(rows, read, table[name].values.tolist(), strict=True):
                expected = row.get(name)
                if column.words:
                    assert line[name] == value == (expected or "")
                elif expected is None:
                    assert line[name] == ""
                    assert math.isnan(value)
                else:
                    assert float(line[name]) == value == expected
    with open(tmp_path / "summary.csv", newline="") as file:
        assert next(csv.reader(file)) == list(SUMMARY)


# -- failures and going on ----------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_a_failing_run_is_reported_and_only_it_is_tried_again(tmp_path, capsys):
    config = study(tmp_path, read_noise=(None,))
    rows = run(config, Toy("rpu"))
    said = capsys.readouterr().out
    assert "rpu, muon, seed 1: failed: RuntimeError: rpu burnt out" in said
    assert "failed: rpu, 2 runs: RuntimeError: rpu burnt out" in said
    assert [r["status"] for r in rows] == ["done"] * 2 + ["failed"] * 2 + ["done"] * 2
    assert rows[2]["error"] == "RuntimeError: rpu burnt out"
    assert "in __call__" in (tmp_path / "failures.txt").read_text()
    with pytest.raises(FileExistsError, match="--resume"):
        run(config, Toy())
    again = Toy()
    rows = run(dataclasses.replace(config, resume=True), again)
    assert again.computed == [("rpu, muon", 1), ("rpu, muon", 2)]
    assert {r["status"] for r in rows} == {"done"}
    assert not (tmp_path / "failures.txt").exists()
    more = Toy()
    run(dataclasses.replace(config, resume=True, devices=("rpu", "levels-4bit"), workers=1), more)
    assert more.computed == [("levels-4bit, muon", 1), ("levels-4bit, muon", 2)]


@pytest.mark.usefixtures("undrawn")
def test_a_failing_reference_leaves_the_chips_without_a_difference(tmp_path):
    rows = run(study(tmp_path, devices=("rpu",), read_noise=(None,)), Toy("digital"))
    assert [r["status"] for r in rows] == ["failed", "failed", "done", "done"]
    assert "difference" not in rows[2]


def test_a_lost_worker_is_a_failed_run():
    future = Future()
    future.set_exception(WorkerLost("lost its worker 3 times"))
    assert device_study._outcome(future) == {
        "status": "failed",
        "error": "WorkerLost: lost its worker 3 times",
    }


@pytest.mark.usefixtures("undrawn")
def test_results_of_a_changed_device_file_or_training_are_refused(tmp_path):
    file = tmp_path / "mine.json"
    cell = devices.preset("soft-bounds-6bit")
    devices.save(cell, file)
    config = study(tmp_path / "study", devices=(str(file),), read_noise=(None,))
    assert run(config, Toy())[2]["steps"] == pytest.approx(63)
    config = dataclasses.replace(config, resume=True)
    with pytest.raises(ValueError, match="other settings"):
        run(dataclasses.replace(config, epochs=3), Toy())
    devices.save(devices.with_bits(cell, 5), file)
    with pytest.raises(ValueError, match="other settings"):
        run(config, Toy())


# -- the grid -----------------------------------------------------------------------------------------


def test_all_are_all_presets_and_references_are_computed_once():
    config = study(None, devices=("all", "rpu"), updates=("muon", "muon-stochastic", "plain"))
    assert config.technologies == devices.preset_names()
    points = config.points()
    assert len(points) == len(set(points)) == 2 * 2 + len(devices.preset_names()) * 2 * 3 * 2
    assert [(p.update, p.seed) for p in points if p.is_digital] == [
        ("muon", 1),
        ("muon", 2),
        ("plain", 1),
        ("plain", 2),
    ]
    assert len({p.file for p in points}) == len(points)


def test_axes_reach_the_cell_and_nothing_else_of_it_changes():
    cell = Point("soft-bounds-6bit", 4, 0.05, 0.1, "muon", 0).cell()
    own = devices.preset("soft-bounds-6bit")
    assert (cell.pulses.steps, cell.read_noise.sigma_relative, cell.pulses.sigma_dtod) == (15, 0.05, 0.1)
    pulses = dataclasses.replace(cell.pulses, steps=63, sigma_dtod=own.pulses.sigma_dtod)
    assert dataclasses.replace(cell, pulses=pulses, read_noise=own.read_noise) == own
    assert Point("soft-bounds-6bit", None, None, None, "muon", 0).cell() == own


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (Point("ideal", 4, None, None, "muon", 0), "neither levels nor pulses"),
        (Point("ideal", None, 0.1, None, "muon", 0), "cannot have read noise"),
        (Point("levels-6bit", None, None, 0.3, "muon", 0), "spread = 0.3 means nothing"),
        (Point("ideal", None, None, 0.3, "muon", 0), "spread = 0.3 means nothing"),
    ],
)
def test_what_a_device_does_not_have_is_no_point_of_the_grid(point, message):
    with pytest.raises(ValueError, match=message):
        point.cell()


@pytest.mark.parametrize("name", RULES)
def test_rules_write_as_they_are_called(name):
    config = study(None, smoke=True, updates=(name,))
    point = Point("rpu", None, None, None, name, 0)
    task = config.task(point)
    learner = point.rule.learner(task, task.data())
    chip, _, feedback = WRITES[task.write]
    assert type(learner.chip) is chip
    assert learner.optimizer.write_feedback == feedback
    roundings = {"stochastic": "stochastic", "rounded": "nearest"}
    if chip is not TikiTakaChip:
        expected = roundings.get(task.write, "truncate")
        assert {array.rounding for array in learner.chip.learning.values()} == {expected}
    digital = point.reference
    reference = digital.rule.learner(config.task(digital), task.data())
    assert reference.chip is None
    assert reference.optimizer.update == learner.optimizer.update
    assert reference.lr == learner.lr


def test_a_run_is_that_of_crossbar_mnist():
    config = study(None, smoke=True)
    point = Point("soft-bounds-6bit", None, None, None, "muon", 3)
    found = train(point, config.task(point))
    row = mnist_seeds.Row(Config(cell="soft-bounds-6bit", solver="sweep", dataset="digits"))
    other = mnist_seeds.train("", row, 3, config)
    same = ("accuracy", "validation", "loss", "pulses/device", "settled", "data")
    assert [found[name] for name in same] == [other[name] for name in same]


# -- from end to end ----------------------------------------------------------------------------------


def test_smoke_run_leaves_tables_and_figures(tmp_path):
    config = study(
        tmp_path,
        smoke=True,
        devices=("ideal", "rpu"),
        bits=(None, 4),
        read_noise=(None, 0.0, 0.1),
        spread=(None, 0.0, 0.5),
        seeds=1,
    )
    rows = run(config)
    assert {r["status"] for r in rows} == {"done", "skipped"}
    done = [r for r in rows if r["status"] == "done"]
    assert len(done) == 1 + 1 + 2 * 3 * 3
    assert all(0 <= r["accuracy"] <= 1 and r["seconds"] > 0 for r in done)
    assert all(r["settled"] == 1 and r["pulses"] > 0 for r in done if r["device"] == "rpu")
    pngs = {file.name for file in tmp_path.glob("*.png")}
    assert pngs == {"ranking.png", "costs.png", "bits.png", "read_noise.png", "spread.png"}
    for name in pngs:
        assert (tmp_path / name).stat().st_size > 5_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": ("unobtainium",)}, "Unknown device 'unobtainium'"),
        ({"devices": ("none",)}, "Unknown device 'none'"),
        ({"devices": ()}, "choose at least one"),
        ({"bits": (4, 4)}, "each once"),
        ({"bits": (0,)}, "bits = 0; choose 1 <= bits <= 16"),
        ({"read_noise": (-0.1,)}, "read_noise = -0.1; choose 0"),
        ({"read_noise": (math.nan,)}, "read_noise = nan; choose 0"),
        ({"spread": (3.0,)}, "spread = 3.0; choose 0 <= spread <= 2"),
        ({"updates": ("adam",)}, "unknown updates .*'adam'.*choose among muon"),
        ({"seeds": 0}, "seeds = 0; choose at least 1"),
        ({"epochs": 0}, "epochs = 0; choose at least 1"),
        ({"workers": 0}, "workers = 0; choose at least 1"),
        ({"scheduler": "here"}, "an address such as tcp://"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StudyConfig(**options)
