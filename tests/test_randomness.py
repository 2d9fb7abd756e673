"""Randomness by name: the same names give the same numbers, on every machine and in every order."""

import torch

from lamella.common.randomness import generator, named_seed, seed_torch

FIXED = 7771270081272481436


def test_a_draw_depends_on_the_seed_and_on_every_name_in_order() -> None:
    names = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, 1, "a"), (0, "a"), (0, "a1"), (0, "a", 1, 1), (0,)]
    assert len({named_seed(*name) for name in names}) == len(names)
    assert named_seed(0, "a", 1) == named_seed(0, "a", 1) == named_seed(0, "a", "1")


def test_seeds_fit_torch_and_are_the_same_for_ever() -> None:
    assert all(0 <= named_seed(s, "x") < 2**63 for s in (-3, 0, 10**30))
    # A stored run is resumed by later versions: these numbers may not change.
    assert named_seed(0, "task", 3, "shuffle") == FIXED


def test_nobody_elses_draws_move_a_generator_and_it_moves_nobodys() -> None:
    before = torch.random.get_rng_state()
    a = torch.rand(3, generator=generator(0, "mine"))
    torch.rand(5, generator=generator(0, "theirs"))
    assert torch.equal(torch.rand(3, generator=generator(0, "mine")), a)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(torch.rand(3, generator=generator(1, "mine")), a)


def test_the_seed_of_the_cpu_is_the_one_that_torch_sets() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        wanted = torch.rand(3)
        seed_torch(7, torch.device("cpu"))
        assert torch.equal(torch.rand(3), wanted)
