"""What all sections of the configuration have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys are errors, numbers are finite,
    docstrings under fields become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class PluginConfig(Section):
    """Something that a user can replace: an import path and its keyword arguments."""

    target: str
    """`package.module:name` of a class or function; called with `options` as keyword arguments."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the target."""
