from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bot.errors import MusherError
from bot.pause import POINTS, PausePoints
from tests.bot.edge import until


def points(folder: Path, at: str) -> PausePoints:
    return PausePoints({"MUSHER_PAUSE_AT": at, "MUSHER_PAUSE_DIR": str(folder)})


async def test_without_the_variables_nothing_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pauses = PausePoints({})
    for point in POINTS:
        await pauses.reached(point)
    assert os.listdir(tmp_path) == []


async def test_a_named_point_stops_until_its_file_is_removed(tmp_path: Path) -> None:
    pauses = points(tmp_path, "begin, sent")
    stopped = asyncio.create_task(pauses.reached("begin"))
    mark = tmp_path / "begin"
    await until(mark.exists)
    await asyncio.wait({stopped}, timeout=0.05)
    assert not stopped.done()
    mark.unlink()
    await asyncio.wait_for(stopped, 30)


async def test_each_point_stops_once_and_others_never(tmp_path: Path) -> None:
    pauses = points(tmp_path, "begin")
    stopped = asyncio.create_task(pauses.reached("begin"))
    mark = tmp_path / "begin"
    await until(mark.exists)
    await pauses.reached("begin")
    await pauses.reached("model")
    mark.unlink()
    await asyncio.wait_for(stopped, 30)


def test_an_unknown_point_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(MusherError, match="MUSHER_PAUSE_AT names 'comit': allowed are admit, begin, model"):
        points(tmp_path, "admit,comit")
