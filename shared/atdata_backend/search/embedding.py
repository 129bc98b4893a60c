"""Own the sentence-embedding model in a folder: texts in, vectors of length one out. Nothing is ever fetched."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atdata.errors import ConfigError

Vector = NDArray[np.float32]

# Tokens of a text that are read at most: the time that it takes grows with them.
_MAX_TOKENS = 256

_MODULES = {"Transformer", "Pooling", "Normalize"}

# Subjects that have nothing to do with one another. Some models find them alike nevertheless.
_UNRELATED = (
    "speech recognition",
    "satellite images of farmland",
    "bread recipes",
    "stock prices",
    "protein structures",
    "chess games",
    "handwritten digits",
    "traffic accidents",
    "sheet music",
    "court rulings",
    "a wug that zibbles",
    "the weather on Mars",
)


class Embedder:
    """The model in *folder*, laid out as sentence-transformers does, run by ONNX Runtime on one core.

    >>> model = Embedder(Path("all-MiniLM-L6-v2"))
    >>> model.document("pictures of cats") @ model.query("kitten photos")
    0.83

    Raises ConfigError when the folder holds no such model, or the extra `semantic` is missing. It is read in when it is
    first needed, which takes as much memory as its file has bytes.
    """

    def __init__(self, folder: Path) -> None:
        missing = [name for name in ("onnxruntime", "tokenizers") if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"ATDATA_SEMANTIC_MODEL is set, but {' and '.join(missing)} cannot be imported: "
                "run `pip install 'atdata-network[semantic]'`, or unset it to search by words only"
            )
        self._folder = folder
        files = [folder / "onnx" / "model.onnx", folder / "model.onnx"]
        self._file = next((file for file in files if file.is_file()), files[0])
        for file in (self._file, folder / "tokenizer.json", folder / "modules.json"):
            if not file.is_file():
                raise self._unfit(f"{file.relative_to(folder)} is missing")
        self._is_mean = self._read_modules()
        prompts = self._json("config_sentence_transformers.json").get("prompts") or {}
        if not isinstance(prompts, Mapping):
            raise self._unfit("the prompts in config_sentence_transformers.json are no object")
        self._query_prompt = str(prompts.get("query") or "")
        self._document_prompt = str(prompts.get("document") or prompts.get("passage") or "")
        limit = self._json("sentence_bert_config.json").get("max_seq_length")
        self._tokens = min(limit, _MAX_TOKENS) if isinstance(limit, int) and limit > 2 else _MAX_TOKENS
        self._loading = threading.Lock()
        self._model: _Model | None = None

    @property
    def id(self) -> str:
        """Eight digits that stand for the model: another one, or one set up otherwise, has others."""
        return self._loaded().id

    @property
    def dimensions(self) -> int:
        return self._loaded().dimensions

    def likeness(self, share: float) -> float:
        """The cosine that lies so far on the way from what the model finds of unrelated texts to that of equal ones.

        Of some models, hardly any two texts have a cosine below 0.7, of others hardly any two a higher one.
        """
        noise = self._loaded().noise
        return noise + (1 - noise) * share

    def query(self, text: str) -> Vector | None:
        """The vector of what somebody looks for; None if the model makes nothing of it."""
        return self._loaded().vector(self._query_prompt + text)

    def document(self, text: str) -> Vector | None:
        """The vector of what may be found; None if the model makes nothing of it."""
        return self._loaded().vector(self._document_prompt + text)

    def _loaded(self) -> _Model:
        with self._loading:
            if self._model is None:
                try:
                    model = _Model(self._file, self._folder / "tokenizer.json", self._tokens, is_mean=self._is_mean)
                    model.learn(self._query_prompt, self._document_prompt)
                except Exception as error:  # the libraries have exceptions of no common type
                    raise self._unfit(" ".join(str(error).split())[:300]) from error
                self._model = model
            return self._model

    def _read_modules(self) -> bool:
        """Whether vectors are means over the tokens; else they are the first token's."""
        modules = self._json("modules.json", list)
        try:
            kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
            pooling = next((module["path"] for module in modules if module["type"].endswith(".Pooling")), None)
        except (AttributeError, KeyError, TypeError):
            raise self._unfit("modules.json does not list modules") from None
        if odd := [kind for kind in kinds if kind not in _MODULES]:
            raise self._unfit(f"it has a module {odd[0]}, which is not supported")
        if not isinstance(pooling, str):
            raise self._unfit("it has no module Pooling")
        config = self._json(f"{pooling}/config.json")
        modes = {name.removeprefix("pooling_mode_") for name, value in config.items() if value is True}
        mode = config.get("pooling_mode")
        modes = (modes & {"mean_tokens", "cls_token", "max_tokens", "mean_sqrt_len_tokens", "lasttoken"}) | (
            {mode} if isinstance(mode, str) else set()
        )
        if modes <= {"mean", "mean_tokens"} and modes:
            return True
        if modes <= {"cls", "cls_token"} and modes:
            return False
        raise self._unfit(f"{pooling}/config.json asks for {', '.join(sorted(modes)) or 'no pooling'}, not mean or cls")

    def _json(self, name: str, type_: type = dict) -> Any:
        file = self._folder / name
        try:
            value = json.loads(file.read_text("utf-8")) if file.is_file() else type_()
        except (OSError, ValueError, RecursionError) as error:
            raise self._unfit(f"{name} cannot be read ({error})") from error
        if not isinstance(value, type_):
            raise self._unfit(f"{name} is not what it should be")
        return value

    def _unfit(self, reason: str) -> ConfigError:
        return ConfigError(
            f"there is no usable sentence-embedding model in {self._folder}: {reason}; name in ATDATA_SEMANTIC_MODEL a "
            "folder in the layout of sentence-transformers, with onnx/model.onnx, such as a copy of all-MiniLM-L6-v2, "
            "or unset it to search by words only"
        )


class _Model:
    """The model in memory. Any number of threads may use it."""

    def __init__(self, file: Path, tokenizer: Path, tokens: int, *, is_mean: bool) -> None:
        # Imported here: most processes have no model.
        import onnxruntime
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(tokens)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # searches have threads and processes enough
        options.log_severity_level = 4  # what it logs, it raises as well
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [asked.name for asked in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name
        self._is_mean = is_mean
        digest = hashlib.sha256(repr((tokens, is_mean)).encode())
        # Large models keep their weights in files beside, of the same name with something after it.
        for part in (*sorted(file.parent.glob(f"{file.name}*")), tokenizer):
            with part.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        self._digest = digest
        self.id = ""
        self.dimensions = 0
        self.noise = 0.0

    def learn(self, query_prompt: str, document_prompt: str) -> None:
        """Try it, to know how long its vectors are and how alike it finds what is not."""
        self._digest.update(repr((query_prompt, document_prompt)).encode())
        self.id = self._digest.hexdigest()[:8]
        self.dimensions = self._pooled(query_prompt + "data", empty_too=True).shape[0]
        vectors = [vector for text in _UNRELATED if (vector := self.vector(query_prompt + text)) is not None]
        cosines = [float(a @ b) for a, b in itertools.combinations(vectors, 2)]
        self.noise = max(sum(cosines) / len(cosines), 0.0) if cosines else 0.0

    def vector(self, text: str) -> Vector | None:
        pooled = self._pooled(text)
        length = float(np.linalg.norm(pooled))
        return (pooled / length).astype(np.float32) if length > 0 and np.isfinite(length) else None

    def _pooled(self, text: str, *, empty_too: bool = False) -> NDArray[np.float64]:
        ids = self._tokenizer.encode(text).ids
        if not ids and not empty_too:
            return np.zeros(1)
        tokens = np.array([ids or [0]], dtype=np.int64)
        known = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "token_type_ids": np.zeros_like(tokens),
            "position_ids": np.arange(tokens.shape[1], dtype=np.int64)[None],
        }
        if unknown := [name for name in self._inputs if name not in known]:
            raise ValueError(f"it has an input {unknown[0]}, which no sentence-embedding model has")
        (output,) = self._session.run([self._output], {name: known[name] for name in self._inputs})
        if not isinstance(output, np.ndarray) or output.shape[:-1] not in ((1,), (1, tokens.shape[1])):
            raise ValueError(f"its output has the shape {getattr(output, 'shape', '?')}, not a vector for each token")
        if output.ndim == 3:
            output = output.mean(axis=1) if self._is_mean else output[:, 0]
        pooled: NDArray[np.float64] = output[0].astype(np.float64)
        return pooled
