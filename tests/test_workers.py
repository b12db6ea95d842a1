"""Processes that work on photos: what happens if the system kills one."""

import os

import pytest

from face_attributes.errors import UserError
from face_attributes.photos.workers import process_pool


def test_a_killed_worker_is_one_line_with_a_remedy() -> None:
    with (
        pytest.raises(UserError, match="the system killed a worker process.*or lower the limit"),
        process_pool("lower the limit", workers=1) as pool,
    ):
        pool.submit(os._exit, 9).result()
