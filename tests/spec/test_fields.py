"""Every field of the spec is named by one test that sees its effect, or is listed as having none, and never both.

A test names fields with `@pytest.mark.spec_field("TrainingConfig.num_epochs", …)`: the message's name and the field's.
Scalars, lists of scalars and maps to scalars need a test; sections do not.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

from detectkit import spec
from detectkit.spec.explain import ROOTS, inner_message, places, value_field
from detectkit.spec.schema import join, rule_of

TESTS = Path(__file__).parents[1]
MESSAGES = {"Training spec": spec.Experiment, "Inference spec": spec.Inference}
MESSAGES["Conversion spec"] = spec.DatasetExportConfig
WITHOUT_EFFECT = [place for place in places() if rule_of(place.field).inert]


def name_of(field):
    return field.full_name.removeprefix("detectkit.spec.")


def live_leaves(descriptor, path=""):
    """The fields that do something: scalars, lists and maps of them that lie under no section without effect."""
    found = set()
    for field in descriptor.fields:
        rule = rule_of(field)
        inner = inner_message(field)
        if rule.inert:
            continue
        found |= {name_of(field)} if inner is None else live_leaves(inner, join(path, field.name))
    return found


LIVE = set().union(*map(live_leaves, ROOTS.values()))


def marks(source):
    """The fields that the tests in a text name, each with its test, found without running it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.spec_field":
                    for argument in call.args:
                        yield ast.literal_eval(argument), node.name


FILES = {str(path.relative_to(TESTS)): path.read_text() for path in sorted(TESTS.rglob("test_*.py"))}
NAMED = [(field, f"{file}::{test}") for file, text in FILES.items() for field, test in marks(text)]


def test_marks_are_found_in_the_source():
    text = '@pytest.mark.spec_field("A.b",\n  "C.d")\n@pytest.mark.slow\ndef test_x(): pass\n'
    assert list(marks(text)) == [("A.b", "test_x"), ("C.d", "test_x")]
    assert list(marks('def test_y():\n  "pytest.mark.spec_field(1)"\n')) == []


def test_every_field_with_an_effect_is_named_by_a_test():
    assert LIVE - {field for field, _ in NAMED} == set()


def test_every_name_is_a_field_with_an_effect():
    assert {(field, test) for field, test in NAMED if field not in LIVE} == set()


def test_every_field_is_named_once():
    twice = [field for field, count in Counter(field for field, _ in NAMED).items() if count > 1]
    assert [(field, test) for field, test in NAMED if field in twice] == []


# Fields without effect


def set_field(message, path):
    """Set the field at a path, in first elements of lists and an entry `car` of maps, to something that is no default."""
    name, _, rest = path.partition(".")
    field = message.DESCRIPTOR.fields_by_name[name]
    if rest:
        inner = getattr(message, name)
        if value_field(field):
            inner = inner["car"]
        elif field.is_repeated:
            inner = inner.add()
        set_field(inner, rest)
    elif field.message_type is not None and field.is_repeated:
        getattr(message, name).add()
    elif field.message_type is not None:
        getattr(message, name).SetInParent()
    elif field.is_repeated:
        getattr(message, name).append("x")
    else:
        setattr(message, name, "x" if field.cpp_type == field.CPPTYPE_STRING else field.default_value + 1)


@pytest.mark.parametrize("place", WITHOUT_EFFECT, ids=lambda place: place.path)
def test_a_field_without_effect_is_warned_about(place):
    message = MESSAGES[place.kind]()
    set_field(message, place.path)
    expected = f" has no effect: {rule_of(place.field).inert}"
    outer = [other for other in WITHOUT_EFFECT if f"{place.path}.".startswith(other.path + ".")]
    outer = min((other for other in outer if other.kind == place.kind), key=lambda other: len(other.path))
    found = [
        text for text in spec.warnings(message) if " has no effect" in text and "no such class" not in text
    ]
    if outer is place:
        assert len(found) == 1 and found[0].endswith(expected)
    assert len(found) == 1 and outer.field.name in found[0].split(" has no effect")[0]


def test_the_reference_marks_exactly_the_fields_without_effect():
    owner, marked = "", set()
    for line in spec.markdown().splitlines():
        owner = line.removeprefix("### ") if line.startswith("### ") else owner
        if line.startswith("| `") and "**Has no effect" in line:
            marked.add(f"{owner}.{line.split('`')[1]}")
    assert marked == {name_of(place.field) for place in WITHOUT_EFFECT}
