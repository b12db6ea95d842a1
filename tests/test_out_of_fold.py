"""The folders of the folds' results."""

from pathlib import Path

from face_attributes.scoring.out_of_fold import remove_stale_folds


def test_only_folders_of_former_folds_are_deleted(tmp_path: Path) -> None:
    for fold in range(4):
        (tmp_path / f"fold{fold}").mkdir()
    (tmp_path / "fold_notes.txt").write_text("not a fold")
    (tmp_path / "fold0_before").mkdir()
    remove_stale_folds(tmp_path, [0, 1])
    kept = ["fold0", "fold0_before", "fold1", "fold_notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
