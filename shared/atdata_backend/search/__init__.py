"""Full-text search over datasets: one interface, two engines."""

from __future__ import annotations

from pathlib import Path

from atdata_backend.search.base import SearchEngine


def open_engine(
    *,
    folder: Path | None,
    meili_url: str | None,
    meili_key: str | None = None,
    model: Path | None = None,
    database_url: str = "",
) -> SearchEngine:
    """The engine that the settings name: Meilisearch at *meili_url* if there is one, else tantivy in *folder*.

    With the folder of a sentence-embedding *model*, it searches by meaning, too; the vectors are at *database_url*.
    """
    engine = _by_words(folder, meili_url, meili_key)
    if model is None:
        return engine
    from atdata_backend.search.embedding import Embedder
    from atdata_backend.search.semantic import SemanticEngine

    return SemanticEngine(engine, Embedder(model), database_url)


def _by_words(folder: Path | None, meili_url: str | None, meili_key: str | None) -> SearchEngine:
    # Imported here so that a process loads only the engine it uses.
    if meili_url:
        from atdata_backend.search.meilisearch import MeilisearchEngine

        return MeilisearchEngine(meili_url, meili_key)
    if folder is None:
        raise ValueError("a search engine needs a folder (tantivy) or a URL (Meilisearch)")
    from atdata_backend.search.tantivy import TantivyEngine

    return TantivyEngine(folder)
