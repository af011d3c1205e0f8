"""From a selection to cases, their ids and groups."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest

from ops import Axis, Point
from suites import Case, Declaration, Suite, suites
from suites.core.cases import PRESETS, Selection, UsageError, expand, groups
from suites.sweep import FEW, VALUES

CONV = Declaration("conv", "Conv", 1, "conv.py", "matmul", False, (), ("torch",), (), {})
HEAD = Axis("head", 1, "groups of channels with a spatial filter each")
DDF = Declaration("ddf", "DDF", 3, "ddf.py", "fma", True, (HEAD,), ("composite", "compiled"), ("compiled",), {})
DECLARED = {"conv": CONV, "ddf": DDF}
LATENCY, PARAMS = suites()["latency"], suites()["params"]


def selection(**changes: object) -> Selection:
    plain = Selection(
        suites=["latency"],
        device="cpu",
        preset="quick",
        ops=None,
        impls=None,
        axes={},
        processes=3,
        seconds=1.0,
        forced=False,
        timeout=60.0,
        seed=0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def ids(chosen: Selection, *taken: Suite) -> list[str]:
    return [case.id for case in expand(chosen, taken or [LATENCY], DECLARED, cores=4)]


def test_id_is_the_documented_one() -> None:
    chosen = selection(axes={"size": [[56, 48]]})
    assert ids(chosen) == [
        "latency:conv/torch@cpu:float32:nchw:forward:n1c256h56w48k3s1d1",
        "latency:ddf/composite@cpu:float32:nchw:forward:n1c256h56w48k3s1d1:mul",
    ]


def test_further_axes_stand_in_the_id_only_off_their_default() -> None:
    axes = {"size": [[7, 7]], "threads": [4, 1], "malloc": ["default"], "head": ["1", "2"], "tf32": [1]}
    found = ids(selection(ops=["ddf"], axes=axes))
    start = "latency:ddf/composite@cpu:float32:nchw:forward:n1c256h7w7k3s1d1:mul"
    assert found == [
        f"{start}:malloc=default:tf32=1",
        f"{start}:head=2:malloc=default:tf32=1",
        f"{start}:malloc=default:tf32=1:threads=1",
        f"{start}:head=2:malloc=default:tf32=1:threads=1",
    ]


def test_a_suite_leaves_out_what_does_not_matter_to_it() -> None:
    cases = expand(selection(axes={"combine": ["mul", "add"]}), [PARAMS], DECLARED, cores=4)
    assert [case.id for case in cases] == ["params:conv/torch@cpu:c256k3", "params:ddf/composite@cpu:c256k3"]
    assert cases[1].values == {"channels": 256, "kernel_size": 3, "head": 1}


def test_ids_are_unique_over_every_axis() -> None:
    axes = {
        "size": [[7, 7], [7, 8]],
        "batch": [1, 2],
        "channels": [8, 16],
        "kernel_size": [3, 5],
        "stride": [1, 2],
        "dilation": [1, 2],
        "combine": ["mul", "add"],
        "dtype": ["float32", "float16"],
        "layout": ["nchw", "channels_last"],
        "direction": ["forward", "forward_backward"],
        "head": ["1", "2"],
    }
    found = ids(selection(axes=axes, preset="paper"))
    shared = 2**9
    assert len(found) == len(set(found)) == shared * (1 + 2 * 2 * 2)


def test_ops_and_impls_of_one_point_form_a_group() -> None:
    axes = {"size": [[7, 7], [14, 14]], "combine": ["mul", "add"], "head": ["1", "2"]}
    found = groups(expand(selection(axes=axes), [LATENCY], DECLARED, cores=4))
    assert [len(group) for group in found] == [5, 5]
    assert {case.point.height for case in found[0]} == {7}


def test_quick_leaves_slow_impls_out_unless_named() -> None:
    assert not any("compiled" in name for name in ids(selection()))
    assert all("ddf/compiled" in name for name in ids(selection(impls=["compiled"])))
    assert any("compiled" in name for name in ids(selection(preset="paper")))


def test_presets_give_the_documented_shapes() -> None:
    quick = expand(selection(), [LATENCY], DECLARED, cores=4)
    assert [case.point.height for case in quick if case.op == "conv"] == [7, 14, 28, 56]
    assert {case.point.batch for case in quick} == {1}
    assert {case.point.batch for case in expand(selection(device="cuda:0"), [LATENCY], DECLARED, 4)} == {8}
    paper = expand(selection(preset="paper"), [LATENCY], DECLARED, cores=4)
    assert [case.point.height for case in paper if case.op == "conv"] == [7, 14, 28, 56, 112, 224]
    full = expand(selection(preset="full"), [LATENCY], DECLARED, cores=4)
    assert {case.point.dtype for case in full} == {"float32", "float64", "float16", "bfloat16"}
    assert (200, 300) in {(case.point.height, case.point.width) for case in full}
    assert {case.point.batch for case in full} == {32}
    assert set(PRESETS) == {"quick", "paper", "full"}


class OneAtATime(Suite):
    name, help = "one_at_a_time", ""
    own_values: ClassVar = {"size": ((7, 7),)}

    def variations(self, preset: str) -> tuple[dict[str, object], ...]:
        return ({}, {"stride": 2}, {"stride": 1}, {"head": 4}, {"batch": 2, "size": (3, 5)})


def varied(**changes: object) -> list[str]:
    cases = expand(selection(**changes), [OneAtATime()], DECLARED, cores=4)
    return [case.id.removeprefix("one_at_a_time:").replace("@cpu:float32:nchw:forward", "") for case in cases]


def test_variations_differ_from_the_centre_in_what_they_name_where_an_op_has_it() -> None:
    assert varied(impls=["torch", "composite"]) == [
        "conv/torch:n1c256h7w7k3s1d1",
        "ddf/composite:n1c256h7w7k3s1d1:mul",
        "ddf/composite:n1c256h7w7k3s1d1:mul:head=4",
        "conv/torch:n1c256h7w7k3s2d1",
        "ddf/composite:n1c256h7w7k3s2d1:mul",
        "conv/torch:n2c256h3w5k3s1d1",
        "ddf/composite:n2c256h3w5k3s1d1:mul",
    ]


def test_what_is_asked_for_is_not_varied() -> None:
    assert varied(ops=["conv"], axes={"size": [[9, 9]], "stride": [1, 3]}) == [
        "conv/torch:n1c256h9w9k3s1d1",
        "conv/torch:n1c256h9w9k3s3d1",
    ]


def test_the_sweep_has_a_point_for_each_value_of_each_axis() -> None:
    sweep = suites()["sweep"]
    for preset, axes in (("quick", FEW), ("paper", VALUES)):
        cases = expand(selection(preset=preset, ops=["ddf"], impls=["composite"]), [sweep], DECLARED, cores=4)
        points = [{**case.values, "size": (case.point.height, case.point.width)} for case in cases]
        near = [point for point in points if point["size"] != (200, 300)]
        for axis, values in axes.items():
            for value in values if axis != "se_ratio" else ():  # which this op does not have
                (found,) = [point for point in near if point[axis] == value]
                differing = {name for name in found if found[name] != points[0][name]}
                assert differing - {"height", "width"} == {axis}
                assert axis == "size" or differing == {axis}
        assert [p["batch"] for p in points if p["size"] == (200, 300)] == [2]


def test_ops_that_a_suite_takes_by_default_are_left_to_it_in_the_preset_full() -> None:
    beside = replace(CONV, name="involution")
    cases = expand(selection(preset="full"), [PARAMS], {**DECLARED, "involution": beside}, cores=4)
    assert {case.op for case in cases} == {"conv", "ddf"}


def test_ops_of_an_op_file_take_part_without_being_named() -> None:
    mine = replace(CONV, name="mine", file="/x/mine.py")
    cases = expand(selection(op_files=["/x/mine.py"]), [PARAMS], {**DECLARED, "mine": mine}, cores=4)
    assert [case.op for case in cases] == ["conv", "ddf", "mine"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ops": ["conf"]}, "--op: 'conf' is not one of conv, ddf"),
        ({"impls": ["nativ"]}, "--impl: 'nativ' is not one of compiled, composite, torch (ops conv, ddf)"),
        ({"ops": ["conv"], "impls": ["composite"]}, "--impl: 'composite' is not one of torch (ops conv)"),
        ({"axes": {"head": ["0"]}}, "--axis head: '0' is not an integer of at least 1"),
    ],
)
def test_what_there_is_not_is_refused_by_name(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as refusal:
        expand(selection(**changes), [LATENCY], DECLARED, cores=4)
    assert str(refusal.value) == says


def test_a_case_survives_json() -> None:
    case = expand(selection(), [LATENCY], DECLARED, cores=4)[-1]
    assert Case.from_json(case.to_json()) == case
    assert Case.from_json(case.to_json()).id == case.id


def test_sizes_of_a_point() -> None:
    point = Point(batch=2, height=9, width=8, kernel_size=5, stride=3, dilation=2, dtype="bfloat16")
    assert (point.out_height, point.out_width, point.padding) == (3, 3, 4)
    assert (point.pixels, point.out_pixels, point.taps, point.itemsize) == (144, 18, 25, 2)


@pytest.mark.parametrize("text", ["0", "-1", "x", "2", ""])
def test_an_axis_refuses_what_is_not_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="is not an odd integer of at least 1"):
        Axis("kernel_size", 3, "", odd=True).parse(text)


def test_a_suite_has_values_of_its_own_where_nobody_asks_for_others() -> None:
    memory = suites()["memory"]
    shape = {"size": [[7, 7]]}
    both = ids(selection(ops=["conv"], axes=shape), memory)
    assert [case.split(":")[4] for case in both] == ["forward", "forward_backward"]
    asked = ids(selection(ops=["conv"], axes={**shape, "direction": ["forward"]}), memory)
    assert asked == both[:1]


def test_growth_has_one_case_an_op() -> None:
    names = ["conv/torch", "ddf/composite"]
    assert ids(selection(), suites()["complexity"]) == [f"complexity:{name}@cpu:float32:threads=1" for name in names]


VARIANTS = {"one": ("base", "se"), "two": ("base", "ddf")}
NETWORKS = {
    name: replace(
        CONV,
        name=name,
        axes=("batch", "height", "width", "dtype", "layout", "direction"),
        resolution=(224, 224),
        extra_axes=(Axis("variant", "base", "", choices=choices),),
    )
    for name, choices in VARIANTS.items()
}


class OfNetworks(Suite):
    name, ops, axes = "of_networks", ("one", "two"), ("batch", "height", "width")
    own_values: ClassVar = {"batch": (1,), "variant": None}


def of_networks(suite: Suite, **changes: object) -> list[str]:
    return [case.id for case in expand(selection(**changes), [suite], {**DECLARED, **NETWORKS}, cores=4)]


def test_a_suite_has_ops_of_its_own_and_every_value_of_an_axis() -> None:
    assert of_networks(OfNetworks()) == [
        "of_networks:one/torch@cpu:n1h224w224",
        "of_networks:one/torch@cpu:n1h224w224:variant=se",
        "of_networks:two/torch@cpu:n1h224w224",
        "of_networks:two/torch@cpu:n1h224w224:variant=ddf",
    ]


def test_an_op_is_measured_on_its_own_axes_at_its_own_resolution() -> None:
    asked = {"channels": [8, 16], "kernel_size": [3, 5]}
    assert of_networks(LATENCY, ops=["one"], axes=asked) == ["latency:one/torch@cpu:float32:nchw:forward:n1h224w224"]
    assert of_networks(OfNetworks(), ops=["one"], axes={"size": [[7, 7]], "variant": ["se"]}) == [
        "of_networks:one/torch@cpu:n1h7w7:variant=se"
    ]


def test_a_value_is_taken_by_the_ops_that_allow_it() -> None:
    assert of_networks(OfNetworks(), axes={"variant": ["ddf"]}) == ["of_networks:two/torch@cpu:n1h224w224:variant=ddf"]
    with pytest.raises(UsageError, match="--axis variant: 'bam' is not one of base, se, ddf"):
        of_networks(OfNetworks(), axes={"variant": ["bam"]})


def test_ops_of_a_suite_are_in_no_preset() -> None:
    declared = {**DECLARED, "resnet50": replace(NETWORKS["one"], name="resnet50")}
    cases = expand(selection(preset="full", axes={"size": [[7, 7]]}), [PARAMS], declared, cores=4)
    assert {case.op for case in cases} == {"conv", "ddf"}


def test_cases_that_are_not_timed_are_measured_alone() -> None:
    cases = expand(selection(axes={"size": [[7, 7]]}), [LATENCY], DECLARED, cores=4)
    assert [len(group) for group in groups(cases)] == [2]
    assert [len(group) for group in groups(cases, ["latency"])] == [1, 1]
