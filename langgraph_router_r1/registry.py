"""The pool: what can be asked, at what price, and how good it is at what.

[models.small]
model = "openai:gpt-4o-mini"            # as for LangChain's init_chat_model
api_key_env = "OPENAI_API_KEY"          # the variable that holds the key
description = "Quick; good at everyday facts."
price = { prompt = 0.15, completion = 0.60 }   # dollars per million tokens; or one number; "free"; or "auto"
skills = { nq = 0.41 }                  # measured, 0 to 1

`router-r1 profile` measures a pool and writes `skills`, `latency_s` and the details, `measured`, into such a file.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from langgraph_router_r1.descriptor import MOST_TOKENS, USE_ENVIRONMENT, ModelDescriptor
from langgraph_router_r1.protocol import fold
from langgraph_router_r1.registry_file import read
from langgraph_router_r1.secret_text import shown


class RegistryError(ValueError):
    """A registry, or the file it stands in, is wrong; the message lists every problem."""


class UnknownModelError(LookupError):
    """No model of that name is registered."""


class ModelRegistry:
    """An ordered, unchangeable set of descriptors.

    Example:
        >>> registry = ModelRegistry([ModelDescriptor(name="small", model="openai:gpt-4o-mini", price=0.2)])
        >>> registry.names
        ('small',)
        >>> registry.without("small").names
        ()
    """

    profile: Path | None
    """The file with what `router-r1 profile` measured of these models, if there is one."""

    def __init__(self, models: Iterable[ModelDescriptor] = (), *, profile: str | Path | None = None) -> None:
        """Collect the descriptors.

        Raises:
            RegistryError: Two names are the same (case and blanks do not count) or two aliases, or a fallback is not
                registered.
        """
        self.profile = None if profile is None else Path(profile)
        self._models: dict[str, ModelDescriptor] = {}
        self._called: dict[str, ModelDescriptor] = {}
        problems = []
        for model in models:
            given: object = model  # whatever the annotation says
            if not isinstance(given, ModelDescriptor):
                raise RegistryError(
                    f"a registry is made of ModelDescriptors, and this is a {type(given).__name__}: "
                    "ModelRegistry.from_dict reads a dict, ModelRegistry.from_file a file"
                )
            if fold(model.name) in self._models:
                problems.append(f"models.{shown(model.name)}: the name is taken; case and blanks do not matter")
            elif fold(model.display_name) in self._called:
                other = self._called[fold(model.display_name)].name
                problems.append(
                    f"models.{shown(model.name)}: the alias {shown(model.display_name)!r} is taken by {other!r}"
                )
            self._models[fold(model.name)] = model
            self._called[fold(model.display_name)] = model
        problems += [
            f"models.{shown(model.name)}.fallbacks: {shown(fallback)!r} is not another model of this registry"
            for model in self
            for fallback in model.fallbacks
            if fold(fallback) not in self._models or fold(fallback) == fold(model.name)
        ]
        if problems:
            raise RegistryError(_list_problems("the registry", problems))

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, source: str = "the registry", profile: str | Path | None = None
    ) -> ModelRegistry:
        """Build from `{"models": {name: fields}}`.

        Raises:
            RegistryError: Anything is wrong; the message lists every problem with its key.
        """
        models = data.get("models") if isinstance(data, Mapping) else None
        if not isinstance(models, Mapping) or not models:
            msg = f"{source} has no models: it must hold one table [models.NAME] for each"
            raise RegistryError(msg)
        problems = [f"{shown(key)}: unknown key; the top level holds 'models'" for key in data if key != "models"]
        descriptors = []
        for name, fields in models.items():
            if not isinstance(fields, Mapping):
                problems.append(f"models.{shown(name)}: is a {type(fields).__name__} and must be a table of fields")
            elif "name" in fields:
                problems.append(f"models.{shown(name)}.name: is not a field here: the table's name is the model's")
            else:
                try:
                    descriptors.append(ModelDescriptor.model_validate({**fields, "name": name}))
                except ValidationError as error:
                    problems += [f"models.{shown(name)}.{_problem(detail)}" for detail in error.errors()]
        if not problems:
            try:
                return cls(descriptors, profile=profile)
            except RegistryError as error:
                problems = str(error).split("\n  ")[1:]
        raise RegistryError(_list_problems(source, problems))

    @classmethod
    def from_file(cls, path: str | Path) -> ModelRegistry:
        """Read a `.toml`, `.yaml` or `.yml` file; its profile is the file `NAME.profile.jsonl` beside it, if any.

        Raises:
            RegistryError: The file can't be read, or anything in it is wrong; the message says where.
        """
        path = Path(path)
        data, problem = read(path)
        if problem:
            raise RegistryError(f"registry file {str(path)!r} {problem}")
        if not isinstance(data, Mapping):
            msg = f"registry file {str(path)!r} holds a {type(data).__name__}; it must hold tables [models.NAME]"
            raise RegistryError(msg)
        profile = path.with_suffix(".profile.jsonl")
        return cls.from_dict(
            data, source=f"registry file {str(path)!r}", profile=profile if profile.is_file() else None
        )

    def with_model(self, model: ModelDescriptor) -> ModelRegistry:
        """Return a registry with this model too, in place of one of the same name."""
        others = [other for other in self if fold(other.name) != fold(model.name)]
        return ModelRegistry([*others, model], profile=self.profile)

    def without(self, *names: str) -> ModelRegistry:
        """Return a registry that lacks these models.

        Raises:
            UnknownModelError: One of them is not in it.
            RegistryError: One of them is a fallback of a model that stays.
        """
        gone = {fold(self[name].name) for name in names}
        return ModelRegistry((model for model in self if fold(model.name) not in gone), profile=self.profile)

    def reading_images(self) -> ModelRegistry:
        """Return the registry of the models that read images."""
        return self.only(lambda model: model.reads_images)

    def only(self, keeps: Callable[[ModelDescriptor], bool]) -> ModelRegistry:
        """Return the registry of the models that meet a condition; among their fallbacks, too, others are left out."""
        kept = {fold(model.name): model for model in self if keeps(model)}
        if len(kept) == len(self):
            return self
        models = (
            model.model_copy(update={"fallbacks": tuple(name for name in model.fallbacks if fold(name) in kept)})
            for model in kept.values()
        )
        return ModelRegistry(models, profile=self.profile)

    def anonymized(self) -> ModelRegistry:
        """Return the registry with models that the router calls model-1, model-2 and so on; their names stay.

        A router may have memorised the names of the pool that it was trained on; among other models they mislead it.
        With anonymised names it goes by descriptions, if such pools were part of its training. Call it last: a model
        that is added later has its own name, and one that is taken out leaves a gap.

        Example:
            >>> small = ModelDescriptor(name="small", model="openai:gpt-4o-mini", price=0.2)
            >>> pool = ModelRegistry([small]).anonymized()
            >>> pool.describe(), pool.names
            ('- $0.2/M tokens. Name: model-1.', ('small',))
        """
        models = (model.model_copy(update={"alias": f"model-{place}"}) for place, model in enumerate(self, start=1))
        return ModelRegistry(models, profile=self.profile)

    def describe(self, savings: Mapping[str, float] | None = None) -> str:
        """Return what the router reads of the pool: a line a model, with what a warm prompt cache saves, by model."""
        return "\n".join(model.describe((savings or {}).get(model.name, 0.0)) for model in self)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(model.name for model in self)

    @functools.cached_property
    def aliases(self) -> tuple[str, ...]:
        """What the router calls the models, in order: their names, unless they have aliases."""
        return tuple(model.display_name for model in self)

    def by_alias(self, alias: str) -> ModelDescriptor:
        """Return the model that the router calls so.

        Raises:
            UnknownModelError: There is none.
        """
        try:
            return self._called[fold(alias)]
        except KeyError:
            raise UnknownModelError(self.explain_unknown(alias)) from None

    def __getitem__(self, name: str) -> ModelDescriptor:
        try:
            return self._models[fold(name)]
        except KeyError:
            raise UnknownModelError(_explain_unknown(name, self.names)) from None

    def explain_unknown(self, alias: str) -> str:
        """Return the sentence that says to the router that it calls no model so, and which it can call."""
        return _explain_unknown(alias, self.aliases)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and fold(name) in self._models

    def __iter__(self) -> Iterator[ModelDescriptor]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        return f"ModelRegistry({', '.join(self.names)})"


def _explain_unknown(name: str, known: Sequence[str]) -> str:
    folded = {fold(other): other for other in known}
    close = difflib.get_close_matches(fold(name), folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    return f"{name!r} is not in the registry; it has: {', '.join(map(repr, known)) or 'no models'}.{hint}"


def _problem(detail: Any) -> str:
    key = ".".join(str(part) if isinstance(part, int) else shown(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return f"{key}: is missing" + (' (use price = "free" for a model that costs nothing)' if key == "price" else "")
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(detail["loc"][-1]), ModelDescriptor.model_fields, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return f"{key}: is not a field of a model{f'; {USE_ENVIRONMENT}' if 'key' in key else meant}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    # Numbers are shown; text and tables may hold a key that stands in the wrong place.
    value = detail["input"]
    is_short = isinstance(value, float) or (isinstance(value, int) and abs(value) <= MOST_TOKENS)
    return f"{key}: {message}{f', and is {value!r}' if is_short else ''}"


def _list_problems(source: str, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{source} has {count}:", *problems])
