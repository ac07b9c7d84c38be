"""Plug-ins: what the configuration names is imported and called, or the error says which key is wrong."""

import sys

import pytest

from octopus_mcore.config.plugins import PluginError, import_target, load_plugin
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.data.digits.sources import DigitsSource


def test_target_is_called_with_options_and_what_the_program_gives():
    plugin = PluginConfig(target="fractions:Fraction", options={"numerator": 3})
    assert str(load_plugin(plugin, "data.train", denominator=4)) == "3/4"
    source = load_plugin(
        PluginConfig(target="octopus_mcore.data.digits.sources:DigitsSource", options={"split": "test"}), "data.train"
    )
    assert isinstance(source, DigitsSource) and source.split == "test"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("fractions.Fraction", r"data.train.target: expected 'package.module:name', found 'fractions.Fraction'"),
        ("fractions:", "expected 'package.module:name'"),
        (":Fraction", "expected 'package.module:name'"),
        ("octopus_mcore.dta.rows:RowSource", "there is no module 'octopus_mcore.dta'"),
        ("no_such_package:RowSource", "there is no module 'no_such_package'"),
        ("octopus_mcore.data.rows:RowsSource", "no class or function 'RowsSource'; did you mean 'RowSource'"),
        ("string:digits", "no class or function 'digits'"),
    ],
)
def test_targets_that_cannot_be_imported(target, message):
    with pytest.raises(PluginError, match=message):
        import_target(target, "data.train")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import a_missing_dependency", "importing 'a_plugin' needs 'a_missing_dependency', which is not installed"),
        ("1 / 0", "importing 'a_plugin' failed: ZeroDivisionError: division by zero"),
        ("def f(:", "importing 'a_plugin' failed: SyntaxError"),
    ],
)
def test_modules_that_fail_to_import(tmp_path, monkeypatch, source, message):
    (tmp_path / "a_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_plugin", raising=False)
    with pytest.raises(PluginError, match=message):
        import_target("a_plugin:f", "data.train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splti": "test"}, r"data.train.options: .*DigitsSource.*unexpected keyword argument 'splti'; did you mean 'split'"),
        ({"zzz": 1}, "'zzz'; it takes split, noise, digits"),
        ({"path": "x"}, "path is given by the program itself"),
    ],
)
def test_options_that_do_not_fit(options, message):
    given = {"path": "y"} if "path" in options else {}
    with pytest.raises(PluginError, match=message):
        load_plugin(
            PluginConfig(target="octopus_mcore.data.digits.sources:DigitsSource", options=options), "data.train", **given
        )


def test_errors_of_the_target_itself_pass_through():
    with pytest.raises(ValueError, match="at least two digits"):
        load_plugin(PluginConfig(target="octopus_mcore.data.digits.sources:DigitsSource", options={"digits": 1}), "data.train")
