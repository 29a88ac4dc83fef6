"""Every argument of every type but its own: one clear line, and no other error."""

from __future__ import annotations

from typing import Any

import pytest

from llmshearing import SourceDistillation, TargetedPruning
from llmshearing.errors import InputError

NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400
NO_NUMBERS = ["abc", "", None, True, [1.0], {"a": 1}, NAN, INFINITY, -INFINITY, HUGE, 1j, -0.1]
NO_TIMES = [
    *("ten", "4", "", "ba", "5ba,", "-5ba", "1.5ba", "1e999ba", "1ep", "9tok", "xdur", "-0.1dur", "1.5dur", "nandur"),
    *(4, 0.5, True, ["5ba"], {"ba": 5}, NAN),
]  # fmt: skip
WRONG: dict[str, list[Any]] = {
    "target": [
        *("2.7b", None, 5, True, [], ["hidden_size"], {}, {"hidden_size": "x"}, {"hidden_size": 24.0}, {"hiden": 24}),
        *({"hidden_size": value} for value in (NAN, True, None, 0, -1, [24], "24")),
        {None: 24},
    ],
    "lr": [*NO_NUMBERS, 0],
    "lr_schedule": ["folow", None, 5, ["constant"]],
    "betas": ["x", 0.9, None, [0.9], [0.9, 0.95, 0.99], [2, 3], [0.9, 1], [NAN, 0.9], ["a", "b"], [True, 0.9], {0: 1}],
    "warmup": NO_TIMES,
    "selection": ["importnace", None, 5, ["learned"]],
    "search": [*NO_TIMES, "0ba", "0dur"],
    "compat": ["papr", None, 5],
    "seed": ["abc", "17", None, True, 1.0, NAN, -1, [1]],
}
WRONG_TEACHERS: dict[str, list[Any]] = {
    "teacher": [5, None, True, "", ["a"], {"a": 1}],
    "weight": [*NO_NUMBERS, "half", 0, 1.5],
    "temperature": [*NO_NUMBERS, "hot", 0],
    "top_k": ["all", 1.5, 0, -1, True, [64], NAN],
    "dtype": ["int8", None, 16, ["float32"]],
}


def cases(wrong: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r:.30}") for name, values in wrong.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(WRONG))
def test_pruning_refuses_what_is_no_setting(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        TargetedPruning(**{"target": {"hidden_size": 24}, name: value})
    check(caught.value, name, value)


@pytest.mark.parametrize(("name", "value"), cases(WRONG_TEACHERS))
def test_distillation_refuses_what_is_no_setting(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        SourceDistillation(**{"teacher": "somewhere", name: value})
    check(caught.value, name, value)


def check(error: InputError, name: str, value: Any) -> None:
    """One line that names the argument and what was given for it."""
    message = str(error)
    assert name in message
    assert "\n" not in message
    given = [
        value,
        *(value if isinstance(value, (dict, list)) else []),
        *(value.values() if isinstance(value, dict) else []),
    ]
    assert value in ({}, []) or any(shown in message for part in given for shown in (repr(part), str(part)))


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1},
        {"betas": [0, 0.5]},
        {"warmup": "0ba"},
        {"warmup": "1dur"},
        {"search": "1dur"},
        {"seed": 0},
        {"seed": 2**80},
        {"selection": "importance"},
        {"selection": "random"},
    ],
    ids=str,
)
def test_settings_of_their_type_are_taken_and_repeated_by_the_repr(settings: dict[str, Any]) -> None:
    algorithm = TargetedPruning({"hidden_size": 24}, **settings)
    assert repr(eval(repr(algorithm))) == repr(algorithm)
