"""What a device has completed, as the events behind the stages say it."""

from trainer.distributed.progress import Position, Progress, event_of


class Device:
    """Completes marks when told, in their order; counts what is made and asked."""

    def __init__(self):
        self.marks, self.completed, self.made = [], 0, 0

    def event(self):
        device = self
        device.made += 1

        class Mark:
            def record(self):
                self.number = len(device.marks)
                device.marks.append(self)

            def query(self):
                if device.completed < 0:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                return self.number < device.completed

        return Mark()


def step(progress, images):
    for stage in ("data", "forward", "backward"):
        progress.stage_done(stage, images)
    progress.step_done()


def test_without_a_device_a_stage_is_completed_when_it_ends():
    progress = Progress()
    assert progress.position() == Position()
    progress.stage_done("data", 64)
    assert progress.position() == Position(1, 64, "data", in_step=True)
    progress.step_done()
    assert progress.position() == Position(1, 64, "data", in_step=False)


def test_the_device_is_told_from_its_process():
    device = Device()
    progress = Progress(device.event)
    step(progress, 0)
    step(progress, 64)
    ahead = "'backward' of the step after 64 images"
    assert progress.position() == Position(0, 0, "start", True, ahead)
    device.completed = 2
    position = progress.position()
    assert position == Position(2, 0, "forward", True, ahead)
    assert str(position) == (
        "had last finished 'forward' of the step after 0 images on its GPU "
        "(its process: 'backward' of the step after 64 images)"
    )
    device.completed = 6
    assert progress.position() == Position(6, 64, "backward", in_step=False)


def test_the_clock_runs_from_what_the_device_completed(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    device = Device()
    progress = Progress(device.event)
    now = 200.0
    progress.stage_done("data", 0)  # the device had nothing to do
    now = 300.0
    progress.stage_done("forward", 0)
    progress.position()
    assert progress.since == 200
    device.completed = 1
    progress.position()
    assert progress.since == 300


def test_events_are_used_again():
    device = Device()
    progress = Progress(device.event)
    for images in range(0, 6400, 64):
        step(progress, images)
        device.completed = max(0, len(device.marks) - 2)  # a little behind
    assert device.made < 10
    assert len(device.marks) == 300


def test_an_error_of_the_device_is_no_progress_and_not_raised_here():
    """The step raises it."""
    device = Device()
    progress = Progress(device.event)
    step(progress, 0)
    device.completed = -1
    assert progress.position().stages == 0
    progress.stage_done("data", 64)


def test_events_are_made_on_cuda_alone():
    import torch

    assert event_of(torch.device("cpu")) is None
    assert event_of(torch.device("cuda", 1)) is torch.cuda.Event
