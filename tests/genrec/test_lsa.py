"""An encoder that was saved gives new texts the vectors that the catalogue's would have had."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.checkpoint import CheckpointError
from genrec.data.interactions import DataError
from genrec.data.lsa import Lsa

TEXTS = [f"{colour} {thing} of wood" for colour in ("red", "blue", "green") for thing in ("chair", "table", "lamp")]


def test_a_saved_encoder_gives_the_catalogue_its_vectors_again(tmp_path):
    encoder, vectors_NE = Lsa.fit(TEXTS, 4)
    encoder.save(tmp_path / "encoder")
    found = Lsa.load(tmp_path / "encoder").encode(TEXTS)
    assert found.dtype == vectors_NE.dtype == np.float32
    np.testing.assert_allclose(found, vectors_NE, atol=1e-6)


def test_a_new_text_lies_near_those_of_its_words_and_strange_words_are_nowhere():
    encoder, vectors_NE = Lsa.fit(TEXTS, 4)
    new, strange = encoder.encode(["blue lamp of wood, new", "unheard nonsense"])
    assert TEXTS[int((vectors_NE @ new).argmax())] == "blue lamp of wood"
    assert not strange.any()


def test_texts_without_words_and_a_missing_encoder_are_refused(tmp_path):
    with pytest.raises(DataError, match="found no words in the texts of 2 items"):
        Lsa.fit(["", "!"], 4)
    with pytest.raises(CheckpointError, match="no such folder"):
        Lsa.load(tmp_path / "none")
