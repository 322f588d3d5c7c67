"""Recipes: strict, with every problem reported at once."""

from pathlib import Path

import pytest

from qpack.errors import ConfigError
from qpack.recipe import (
    Knob,
    builtin_names,
    builtin_recipe,
    default_recipe,
    load_recipe,
    parse_recipe,
    read_recipe,
)
from qpack.rule import TERMS, Rule


def test_record_is_what_the_reference_systems_do() -> None:
    embedding, matrix, vector, buffer = builtin_recipe("record").rules
    assert (embedding.qmax, embedding.scale, embedding.k, embedding.solver) == (
        127,
        "sigma",
        10.0,
        "gptq",
    )
    assert (matrix.qmax, matrix.scale, matrix.k, matrix.knob) == (31, "sigma", 12.85, True)
    assert (vector.type, buffer.type) == ("float16", "keep")
    assert builtin_recipe("record").knob.name == "k"


def test_default_follows_sensitivity_under_one_knob() -> None:
    quantized, vector, buffer = default_recipe().rules
    assert quantized.match == ("class:embedding", "class:matrix")
    assert (quantized.scale, quantized.terms, quantized.trellis) == ("rd", TERMS, 8)
    assert quantized.knob and not quantized.clips
    assert (vector.type, buffer.type) == ("float16", "keep")
    assert default_recipe().knob.bounds == (0.05, 20.0)


def test_recipes_by_name(tmp_path: Path) -> None:
    assert builtin_names() == ("default", "record")
    assert read_recipe("record") == builtin_recipe("record") == read_recipe(Path("record"))
    assert read_recipe("default") == read_recipe(None)
    for name, hint in (("recrod", "did you mean 'record'?"), ("x.toml", "default, record")):
        with pytest.raises(ConfigError, match="cannot be read as a recipe") as caught:
            read_recipe(tmp_path / name)
        assert hint in str(caught.value.hint)


def test_a_recipe_that_names_no_knob() -> None:
    turned = '[[rule]]\nmatch = "a"\nknob = true\n'
    assert parse_recipe(turned, name="r").knob.name == "k"
    assert parse_recipe(turned + 'scale = "rd"', name="r").knob.name == "c"
    assert parse_recipe("[knob]\nname = 'none'\n" + turned, name="r").knob.name == "none"


def test_turning_the_knob() -> None:
    rule = Rule(match=("x",), knob=True, scale="percentile", qmax=31)
    k = rule.turned("k", 9.5)
    assert (k.scale, k.k, k.qmax, k.clip) == ("sigma", 9.5, 31, False)
    q = rule.turned("qmax", 42)
    assert (q.scale, q.qmax, q.floor, q.clip) == ("absmax", 42, 0.0, True)
    c = rule.turned("c", 0.9)
    assert (c.scale, c.c, c.clips, c.step_octave) == ("rd", 0.9, False, 64)
    assert c.turned("k", 9.5).scale == "sigma"
    floor = rule.turned("qmax-floor", 42)
    assert floor.floor == pytest.approx(1 / 42)
    assert Rule(match=("x",)).turned("k", 9.5) == Rule(match=("x",))


@pytest.mark.parametrize(("bits", "qmax"), [(2, 1), (5, 15), (6, 31), (8, 127)])
def test_bits(bits: int, qmax: int) -> None:
    recipe = parse_recipe(f'[[rule]]\nmatch = "a"\nbits = {bits}', name="r")
    assert recipe.rules[0].qmax == qmax


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[rule]]\nmatch = "a"\nbitz = 6', "unknown key 'bitz'; did you mean 'bits'?"),
        ('[[rule]]\nmatch = "a"\nbits = 6\nqmax = 3', "`bits` or `qmax`, not both"),
        ('[[rule]]\nmatch = "a"\nbits = 9', "bits = 9"),
        ('[[rule]]\nmatch = "a"\nqmax = 128', "qmax = 128: expected an integer from 1 to 127"),
        ('[[rule]]\nmatch = "a"\nqmax = true', "qmax = True"),
        ('[[rule]]\nmatch = "a"\nqmax = 0', "qmax = 0"),
        ('[[rule]]\nmatch = "a"\nscale = "absmx"', "did you mean 'absmax'?"),
        ('[[rule]]\nmatch = "a"\ntype = "int6"', "unknown type 'int6'"),
        ('[[rule]]\nmatch = "a"\nsolver = "gtpq"', "did you mean 'gptq'?"),
        ('[[rule]]\nmatch = "a"\nk = -1', "k = -1"),
        ('[[rule]]\nmatch = "a"\nk = nan', "k = nan"),
        ('[[rule]]\nmatch = "a"\ndamping = "x"', "damping = 'x'"),
        ('[[rule]]\nmatch = "a"\nscale_floor = "1/q"', "scale_floor = '1/q'"),
        ('[[rule]]\nmatch = "a"\noctave = 12', "octave = 12"),
        ('[[rule]]\nmatch = "a"\nclip = 1', "clip = 1: expected true or false"),
        ('[[rule]]\nmatch = "re:("', "not a regular expression"),
        ('[[rule]]\nmatch = "class:matrx"', "did you mean 'matrix'?"),
        ("[[rule]]\nmatch = 3", "`match` must be a string"),
        ("[[rule]]\nbits = 6", "`match` must be a string"),
        ("[[rule]]\nmatch = []", "`match` is empty"),
        ('[[rule]]\nmatch = "a"\ntype = "float16"\nknob = true', "knob = true needs type int"),
        ("[rule]\nmatch = 'a'", "array of tables"),
        ("[knob]\nname = 'k'", "no [[rule]]"),
        ("rules = 3", "unknown key 'rules'; did you mean 'rule'?"),
        ("knob = 'k'", "`knob` must be a table"),
        ("[knob]\nname = 'q'", "unknown knob 'q'"),
        ("[knob]\nname = 'k'\nlow = 9\nhigh = 2", "expected 0 < low <= high"),
        ("[knob]\nname = 'qmax'\nhigh = 200", "qmax is an integer from 1 to 127"),
        ("[knob]\nlow = 'x'", "knob.low = 'x': expected a number"),
        ('[[rule]]\nmatch = "a"\noctave = 16.0', "octave = 16.0"),
        ('[[rule]]\nmatch = "a"\nk = inf', "k = inf"),
        ('[[rule]]\nmatch = "a"\ntype = "keep"\nbits = 4', "qmax: without meaning for type 'keep'"),
        ('[[rule]]\nmatch = "a"\nscale = "rd"\nbits = 6', "qmax: without meaning for scale 'rd'"),
        ('[[rule]]\nmatch = "a"\ntrellis = 8', "trellis: without meaning for scale 'absmax'"),
        ('[[rule]]\nmatch = "a"\nscale = "rd"\ntrellis = 5', "trellis = 5: expected one of 0, 4"),
        ('[[rule]]\nmatch = "a"\nscale = "rd"\nc = 0', "c = 0: expected a number above 0"),
        ('[[rule]]\nmatch = "a"\nscale = "rd"\nterms = ["rows"]', "did you mean 'row'?"),
        ('[[rule]]\nmatch = "a"\nscale = "rd"\nterms = "row"', "terms = 'row': expected a list"),
        ('[[rule]]\nmatch = "a"\nscale = "rd"\nterms = ["row", "row"]', "one is given twice"),
        ('[[rule]]\nmatch = "a"\nscale = "rd"\ngains = 1', "gains = 1: expected true or false"),
        ("[knob]\nname = 'c'\nchoose = 'no'", "knob.choose = 'no': expected true or false"),
        ("[[rule", "not valid TOML"),
    ],
)
def test_problems_are_named(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, name="r.toml")
    assert expected in str(caught.value)
    assert caught.value.exit_code == 3


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe('[[rule]]\nmatch="a"\nbitz=1\n[[rule]]\nmatch="b"\nk=0\nqmax=0', name="r")
    assert len(caught.value.items) == 3
    assert caught.value.items[0].startswith("rule 1:")


def test_file_problems(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "bad.toml")


def test_description_is_complete() -> None:
    description = default_recipe().describe()
    assert description["knob"] == {"name": "c", "low": 0.05, "high": 20.0, "choose": True}
    assert description["rules"][0]["damping"] == 0.01
    assert description["rules"][0]["terms"] == list(TERMS)
    assert Knob(name="qmax").bounds == (31.0, 127.0)


TABLES = {"knob": {"name": "qmax"}, "rule": [{"match": "a", "bits": 5, "knob": True}]}


def test_three_ways_to_give_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[knob]\nname = "qmax"\n[[rule]]\nmatch = "a"\nbits = 5\nknob = true\n')
    inline, read = read_recipe(TABLES), read_recipe(path)
    assert inline.rules == read.rules and inline.knob == read.knob
    assert (inline.name, read.name) == ("inline", "r.toml")
    assert inline.rules[0].qmax == 15
    assert read_recipe(None) == default_recipe()


def test_an_inline_recipe_is_as_strict(tmp_path: Path) -> None:
    tables = {"knob": {"lo": 1}, "rule": [{"match": "a", "bitz": 5}], "rules": []}
    with pytest.raises(ConfigError, match="inline: the recipe is not usable") as caught:
        read_recipe(tables)
    assert len(caught.value.items) == 3
    assert "unknown key 'bitz'; did you mean 'bits'?" in str(caught.value)
