"""Models that are served by the tests of this folder."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from lightgpt2.models.chat import ChatTemplate
from lightgpt2.runtime.completion import Completer
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.serve.app import make_app
from lightgpt2.serve.service import Service
from lightgpt2.serve.settings import Settings
from tests.support.chats import SPECIAL, TEMPLATES
from tests.support.models import write_tokenizer
from tests.support.serving import markov

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    found: Tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer")).backend_tokenizer
    return found


@pytest.fixture
def model(tokenizer: Tokenizer) -> LanguageModel:
    return markov(tokenizer, template=ChatTemplate(TEMPLATES["ChatML"][0], SPECIAL))


@pytest.fixture
def service(model: LanguageModel) -> Iterator[Service]:
    service = Service("tiny", model, Settings(), Completer(model))
    yield service
    service.worker.close()


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(make_app(service), base_url=URL)
