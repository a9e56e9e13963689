import json
from pathlib import Path

from train.history import META, History, learning_curves, meta_curves, write_meta_histories

KEY = "of this run"


def write_notes(folder: Path, name: str, losses: list[float], key: str = KEY) -> None:
    rows = [{"epoch": n, "loss": loss, "dev_macro_f1": 1 - loss, "examples": 3} for n, loss in enumerate(losses)]
    notes = {"key": key, "rows": rows, "best_epoch": len(rows) - 1, "steps": 7}
    (folder / f"{name}.json").write_text(json.dumps(notes), encoding="utf-8")


def test_curves_come_in_the_order_of_members_folds_and_stages(tmp_path: Path) -> None:
    for name in (
        "b.stage2",
        "b.stage1",
        "b-without-fold-10.stage1",
        "b-without-fold-2.stage1",
        "a-x.stage1",
    ):
        write_notes(tmp_path, name, [0.5, 0.25])
    for name in ("gone.stage1", "b-without-fold-11.stage1", "a-x.stage2"):
        write_notes(tmp_path, name, [0.5], "of an earlier run")
    (tmp_path / "b.stage1.safetensors").write_bytes(b"weights")
    (tmp_path / "b.stage1.json.part").write_text("half", encoding="utf-8")
    curves = learning_curves(tmp_path, ("b", "a-x"), {KEY})
    found = [(row["member"], row["fold"], row["stage"]) for row in curves]
    assert found == [
        ("b", None, "stage1"),
        ("b", None, "stage2"),
        ("b", 2, "stage1"),
        ("b", 10, "stage1"),
        ("a-x", None, "stage1"),
    ]
    assert curves[0]["loss"] == [0.5, 0.25]
    assert curves[0]["dev_macro_f1"] == [0.5, 0.75]
    assert (curves[0]["best_epoch"], curves[0]["steps"]) == (1, 7)
    assert json.loads(json.dumps(curves)) == curves


def test_a_folder_without_notes_has_no_curves(tmp_path: Path) -> None:
    assert learning_curves(tmp_path / "none", ("a",), {KEY}) == []


def history_of(*scores: float) -> History:
    rows = [{"epoch": n, "loss": 1 - score, "dev_macro_f1": score, "examples": 3} for n, score in enumerate(scores)]
    return History(rows, best_epoch=len(rows) - 1, steps=2 * len(rows))


def test_curves_of_stage_3_come_in_the_order_of_their_seeds(tmp_path: Path) -> None:
    write_meta_histories(tmp_path / "meta", {7: history_of(0.5)})
    write_meta_histories(tmp_path / "meta", {10: history_of(0.25, 0.5), 2: history_of(0.75)})
    assert meta_curves(tmp_path / "meta") == [
        {
            "member": META,
            "fold": None,
            "stage": "stage3",
            "seed": seed,
            "loss": [1 - score for score in scores],
            "dev_macro_f1": scores,
            "best_epoch": len(scores) - 1,
            "steps": 2 * len(scores),
        }
        for seed, scores in ((2, [0.75]), (10, [0.25, 0.5]))  # seed 7 was an earlier recipe's
    ]
    assert meta_curves(tmp_path / "none") == []


def test_the_best_score_is_that_of_the_epoch_that_is_kept() -> None:
    assert History().best_score < 0
    history = history_of(0.5, 0.25)
    history.best_epoch = 0
    assert history.best_score == 0.5
