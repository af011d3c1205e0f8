"""JUnit XML, `junit.xml`: a test case for each case of a run, or for each verdict of a comparison.

There is no standard; this is what Jenkins, GitLab and GitHub's reporters read: testsuites, testsuite, testcase, and in
it failure (it was measured, and is wrong or slower), error (it could not be measured) or skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

from . import FAILURES, Record, Run
from .core.arrange import device_names
from .core.units import with_bounds
from .core.verdict_tables import change
from .core.verdicts import AMBIGUOUS, MISSING, NOT_COMPARABLE, Comparison, Verdict

NAME = "junit"
ORDER = 50
ON_REQUEST = True
FILE = "junit.xml"

#: What XML 1.0 has no place for, whatever it is written as.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Element = ElementTree.Element


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    root = Element("testsuites", name="ddfbench")
    several = len(runs) > 1
    for run, device in zip(runs, device_names(runs), strict=True):
        for suite in run.suites():
            chosen = [record for record in run.records if record.suite == suite]
            _suite(root, f"{device}: {suite}" if several else suite, chosen, _of_record)
    return {FILE: _text(root)}


def serialize_comparison(comparison: Comparison) -> dict[str, str | bytes]:
    root = Element("testsuites", name="ddfbench")
    name = f"{comparison.command}: {comparison.new} against {comparison.base}"
    _suite(root, name, comparison.verdicts, _of_verdict)
    return {FILE: _text(root)}


def _suite(root: Element, name: str, items: Sequence[Any], made: Callable[[Any], Element]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=_xml(name))
    suite.extend(map(made, items))
    suite.set("tests", str(len(items)))
    for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(plural, str(len(suite.findall(f"testcase/{kind}"))))


def _of_record(record: Record) -> Element:
    case = Element("testcase", name=_xml(record.case), classname=_xml(f"ddfbench.{record.suite}.{record.op}"))
    if record.status != "ok":
        kind = "skipped" if record.status not in FAILURES else "failure" if record.status == "failed" else "error"
        _mark(case, kind, record.status, record.reason)
    told = "\n".join(f"{metric.name} {with_bounds(metric)}" for metric in record.metrics if metric.value is not None)
    if told:
        ElementTree.SubElement(case, "system-out").text = _xml(told)
    return case


def _of_verdict(verdict: Verdict) -> Element:
    classname = f"ddfbench.{verdict.case.partition('/')[0].replace(':', '.')}"
    case = Element("testcase", name=_xml(f"{verdict.case} {verdict.metric}".strip()), classname=_xml(classname))
    told = ", ".join(filter(None, (verdict.verdict.replace("_", " "), change(verdict), verdict.reason)))
    if verdict.worse:
        _mark(case, "failure", verdict.verdict, told)
    elif verdict.verdict == MISSING:
        _mark(case, "error", verdict.verdict, told)
    elif verdict.verdict in (AMBIGUOUS, NOT_COMPARABLE):
        _mark(case, "skipped", verdict.verdict, told)
    else:
        ElementTree.SubElement(case, "system-out").text = _xml(told)
    return case


def _mark(case: Element, kind: str, word: str, message: str) -> None:
    mark = ElementTree.SubElement(case, kind, message=_xml(message or word))
    if kind != "skipped":
        mark.set("type", _xml(word))


def _xml(text: object) -> str:
    """Text without the characters that XML cannot hold; the writer escapes the rest."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(text))


def _text(root: Element) -> str:
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'
