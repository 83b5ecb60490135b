"""What a run shows on the console."""

from debugnn.records import Epoch
from debugnn.runs.kept import keep_rows_before
from debugnn.runs.sinks import epoch_line


def test_the_line_of_one_run_shows_its_accuracy_in_percent():
    line = epoch_line(Epoch(3, 83, 0.5, 0.25, 70.0, 0.75, 62.5, 0.1), 10)
    assert line == "  epoch 3 of 10  train loss       0.5  test loss      0.75  accuracy  62.5 %"


def test_the_rows_of_a_range_test_stay_once_a_step_is_taken(tmp_path):
    """It is repeated only with step 0."""
    file = tmp_path / "metrics.jsonl"
    rows = ['{"lr": 1.0}', '{"step": 0}', '{"step": 1}', '{"step": 2}']
    for step, kept in ((2, rows[:3]), (1, rows[:2]), (0, [])):
        file.write_text("".join(f"{row}\n" for row in rows))
        keep_rows_before(file, 0, step)
        assert file.read_text().split("\n")[:-1] == kept


def test_the_row_of_an_epoch_goes_that_the_checkpoint_has_not_completed(tmp_path):
    """The run was killed after the row, and the checkpoint is of the epoch's last step."""
    file = tmp_path / "metrics.jsonl"
    steps = [f'{{"kind": "step", "epoch": 0, "step": {step}}}' for step in range(2)]
    epoch = '{"kind": "epoch", "epoch": 0, "step": 1}'
    for completed, kept in ((0, steps), (1, [*steps, epoch])):
        file.write_text("".join(f"{row}\n" for row in [*steps, epoch]))
        keep_rows_before(file, completed, 2)
        assert file.read_text().split("\n")[:-1] == kept
