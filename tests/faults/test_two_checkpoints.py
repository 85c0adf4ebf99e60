"""Row 11: one damaged file never ends a run: from the second save on two distinct checkpoints are there."""

from pathlib import Path

import pytest
from fitting import fit

from research.run_dir import list_checkpoints


@pytest.mark.parametrize("keep_last", [1, 2])
@pytest.mark.parametrize("eval_every", [4, 100])
def test_two_are_there_whatever_is_best(tmp_path: Path, keep_last: int, eval_every: int) -> None:
    fit(tmp_path, steps=12, every=4, keep_last=keep_last, eval_every=eval_every)
    assert len(list_checkpoints(tmp_path)) >= 2
    assert max(list_checkpoints(tmp_path)) == 12


def test_a_run_with_the_defaults_survives_a_flipped_bit_anywhere(tmp_path: Path) -> None:
    whole = fit(tmp_path, steps=12, eval_every=4)
    newest = next(iter(list_checkpoints(tmp_path).values()))
    for file in newest.iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    again = fit(tmp_path, steps=12, eval_every=4, resume=tmp_path)
    assert again.progress.step == whole.progress.step == 12
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert a.equal(b)
