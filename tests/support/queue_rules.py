"""Single rules of the policy, each one in a situation that is made for it."""

from support.checked_queue import ChangingCosts, CheckedQueue
from support.simulated_device import group_of

from latentrt.serve.dispatcher.policy import Call, Encode


def check_late_work_is_dropped() -> None:
    """Work that ran and work that waited, when the device stops for a while."""
    queue = CheckedQueue(costs=ChangingCosts(caps=1))
    jobs = [queue.submit("a", group_of(64), 5, deadline=deadline) for deadline in (1.0, 3.0, None)]
    queue.step()
    queue.step()
    queue.now += 10
    queue.step()
    assert queue.ended == ["0", "1"]
    queue.finish()
    assert all(jobs)


def check_texts_do_not_hold_images_up() -> None:
    """Texts that take longer than a quantum, of two jobs of one group, and of two groups."""
    for sides in ((72, 72), (72, 80)):
        queue = CheckedQueue(costs=ChangingCosts(texts=300.0))
        queue.submit("a", group_of(64), 50)
        while not isinstance(queue.step(), Call):
            pass
        for side in sides:
            queue.submit("b", group_of(side), 3)
        queue.finish()


def check_a_fifth_group_gets_slots_although_four_go_on() -> None:
    """The records of their groups are equal, not the same."""
    queue = CheckedQueue()
    sides = (64, 72, 80, 88, 96)
    waiting = {side: queue.submit("a", group_of(side), 3, images=6) for side in sides}
    for _ in range(400):
        queue.step()
        for side, job in waiting.items():
            if side != 96 and job is not None and job.id not in queue.policy.jobs:
                waiting[side] = queue.submit("a", group_of(side), 3, images=6)
    last = waiting[96]
    assert last is not None
    assert last.started


def check_a_set_gives_way_although_more_of_its_work_comes() -> None:
    """Images of many lengths, so that they do not finish all at once."""
    queue = CheckedQueue(models=("m",), costs=ChangingCosts(caps=8))
    for calls in range(5, 15):
        queue.submit("a", group_of(64), calls)
    queue.step()
    other = queue.submit("b", group_of(64, "a"), 3)
    for number in range(400):
        queue.step()
        while queue.policy.waiting() < 10:
            queue.submit("a", group_of(64), 5 + number % 11)
    assert other is not None
    assert other.started, "a set starves"


def check_a_job_that_runs_alone_does_not_wait_for_turns() -> None:
    """A set whose images may not start beside it has no claim to the weights."""
    queue = CheckedQueue(models=("m",))
    queue.submit("a", group_of(64, "a"), 3)
    while not isinstance(queue.step(), Call):
        pass
    queue.submit("a", group_of(64, "a"), 3, images=8)
    queue.submit("b", group_of(64), 3, alone=True)
    queue.finish()


def check_restarts_keep_the_order_of_jobs() -> None:
    queue = CheckedQueue()
    for _ in range(3):
        queue.submit("a", group_of(64), 3)
    while not isinstance(queue.step(fails=True), Call):
        pass
    (line,) = queue.policy.lines.values()
    assert [image.job.id for image in line.all_waiting()] == ["0", "1", "2"]
    queue.finish()


def check_a_lowered_cap_holds_for_images_that_were_chosen_before() -> None:
    queue = CheckedQueue()
    group = group_of(64)
    queue.submit("a", group, 3, images=3)
    assert isinstance(queue.step(), Encode)
    queue.costs.limits[group] = 1
    queue.finish()


CHECKS = [
    check_late_work_is_dropped,
    check_texts_do_not_hold_images_up,
    check_a_fifth_group_gets_slots_although_four_go_on,
    check_a_set_gives_way_although_more_of_its_work_comes,
    check_a_job_that_runs_alone_does_not_wait_for_turns,
    check_restarts_keep_the_order_of_jobs,
    check_a_lowered_cap_holds_for_images_that_were_chosen_before,
]
