"""What several test files need: real faces, the executed chapters, the rendered site, a browser without a network."""
import os
import shutil
from pathlib import Path

import pytest

from fer_book import build, doctor

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real faces; tests that need it are skipped where there is none."""
    if not os.environ.get("FER_BOOK_DATA"):
        pytest.skip("needs real faces: set FER_BOOK_DATA to the folder that holds them")
    return Path(os.environ["FER_BOOK_DATA"])


@pytest.fixture(scope="session")
def executed(tmp_path_factory) -> Path:
    """Every chapter, run once with papermill at `smoke`; which of them failed is in `timings.json`."""
    folder = tmp_path_factory.mktemp("book") / "executed"
    try:
        build.execute_all(build.chapters(), folder, profile="smoke")
    except build.BuildError:
        pass  # the test of the chapter that failed says so
    return folder


@pytest.fixture(scope="session")
def site(executed) -> Path:
    """The folder with the rendered site, made of the executed chapters."""
    return build.render(executed, executed.parent).parent


@pytest.fixture(scope="session")
def browser():
    """A headless browser that the system provides."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, doctor.BROWSERS)), None)
    if not found:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
