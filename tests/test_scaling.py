"""The simulation of large runs: what grows with what, and what stops scaling."""

import pytest

from benchmarks.scaling import (
    GPUS,
    Parts,
    Workload,
    checkpointed_share,
    efficiency,
    limit,
    phases,
    task_seconds,
)

FREE = Parts(
    clean=0, crop=0, send=0, hash=0, pair=0, start=0, photos_per_second=100,
    disk_bytes_per_second=1e9, network_bytes_per_second=1e9, dvc_per_experiment=0, cores=1,
    bytes_per_photo=0, bytes_per_row=0, checkpoint_bytes=1,
)  # fmt: skip
"""Training alone takes time."""
WORK = Workload(photos=3000, experiments=64, epochs=2, folds=5)


def test_a_task_trains_on_all_folds_but_one_and_scores_that() -> None:
    assert task_seconds(FREE, WORK) == pytest.approx(2 * (2400 + 600 / 3) / 100)
    assert task_seconds(FREE._replace(start=7), WORK) == pytest.approx(52 + 7)


@pytest.mark.parametrize("gpus", GPUS)
def test_training_alone_scales_to_all_gpus(gpus: int) -> None:
    assert efficiency(FREE, WORK, gpus, 8) == pytest.approx(1)
    assert limit(FREE, WORK, 8) == "scales to 64 GPUs"


def test_one_experiment_has_no_more_tasks_than_folds() -> None:
    one = WORK._replace(experiments=1)
    assert phases(FREE, one, 8, 8)["train"] == phases(FREE, one, 64, 8)["train"]
    assert limit(FREE, one, 8) == "scales to 8 GPUs; beyond: 5 tasks for more GPUs"


def test_crops_spread_over_machines_that_double_in_each_round() -> None:
    parts = FREE._replace(bytes_per_photo=10**6)
    copied = [phases(parts, WORK, gpus, 8)["copy"] for gpus in (8, 16, 32, 64)]
    assert copied == pytest.approx([3, 6, 9, 12])
    slow = parts._replace(disk_bytes_per_second=1e8)
    assert phases(slow, WORK, 8, 8)["copy"] == pytest.approx(30)


def test_all_machines_crop_until_the_driver_has_no_time_to_send_more() -> None:
    parts = FREE._replace(crop=0.016, send=0.004)
    cropped = [phases(parts, WORK, gpus, 8)["crop"] for gpus in (8, 16, 32, 64)]
    assert cropped == pytest.approx([48, 24, 12, 12])


def test_duplicates_grow_with_the_square_of_the_photos() -> None:
    parts = FREE._replace(pair=1e-3)
    small, large = (
        phases(parts, WORK._replace(photos=photos), 1, 8)["duplicates"] for photos in (1000, 10000)
    )
    assert large / small == pytest.approx(100, rel=0.01)
    assert limit(parts, WORK, 8) == "scales to 2 GPUs; beyond: duplicates"
    assert limit(parts._replace(pair=1), WORK, 8) == "even one GPU waits for: duplicates"


def test_dvc_works_on_one_experiment_after_the_other() -> None:
    parts = FREE._replace(dvc_per_experiment=10)
    assert phases(parts, WORK, 64, 8)["dvc"] == 640
    assert limit(parts, WORK, 8) == "scales to 16 GPUs; beyond: dvc"


def test_more_gpus_than_the_network_has_room_for_lose_checkpoints() -> None:
    parts = FREE._replace(checkpoint_bytes=10**9)
    assert checkpointed_share(parts, WORK, 8) == 1
    assert checkpointed_share(parts, WORK, 52) == pytest.approx(0.5)
