import json
from pathlib import Path

from train.history import learning_curves


def write_notes(folder: Path, name: str, losses: list[float]) -> None:
    rows = [{"epoch": n, "loss": loss, "dev_macro_f1": 1 - loss, "examples": 3} for n, loss in enumerate(losses)]
    notes = {"key": "of this recipe", "rows": rows, "best_epoch": len(rows) - 1, "steps": 7}
    (folder / f"{name}.json").write_text(json.dumps(notes), encoding="utf-8")


def test_curves_come_in_the_order_of_members_folds_and_stages(tmp_path: Path) -> None:
    for name in (
        "b.stage2",
        "b.stage1",
        "b-without-fold-10.stage1",
        "b-without-fold-2.stage1",
        "a-x.stage1",
        "gone.stage1",
    ):
        write_notes(tmp_path, name, [0.5, 0.25])
    (tmp_path / "b.stage1.safetensors").write_bytes(b"weights")
    (tmp_path / "b.stage1.json.part").write_text("half", encoding="utf-8")
    curves = learning_curves(tmp_path, ("b", "a-x"))
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
    assert learning_curves(tmp_path / "none", ("a",)) == []
