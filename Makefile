# make book      install, execute every chapter, render the site to _build/html     (PROFILE=cpu or gpu: longer runs)
# make test      install, run the whole test suite, chapters and browser included
# make layouts  every chapter on every form in which FER-2013 is to be had, about an hour
# make install  install only: .venv with the locked libraries and the package
# make lock      choose versions anew within pyproject.toml's bounds
# make clean    remove what was built, keep what was installed
# .venv/bin/fer-book doctor says what this machine can run, and what to do where it cannot

PYTHON  ?= python3
PROFILE ?= smoke
UV      := uv==0.13.9
VENV    := .venv/bin/python
# one stamp per content of these files and place of this folder: a second `make` has nothing to install
# but where that Python is gone or another one, as after an upgrade of the system, the stamp says nothing
$(shell .venv/bin/python -P -c 'import fer_book' 2>/dev/null || rm -f .venv/installed-*)
STAMP   := .venv/installed-$(shell { pwd; cat requirements.lock pyproject.toml; } | cksum | cut -d' ' -f1)

# compiled modules halve the start of every kernel
unexport PYTHONDONTWRITEBYTECODE
# what a user set for installing elsewhere: pip refuses it in a virtual environment
export PIP_USER := 0
# the certificates this machine trusts, where it keeps any
export UV_SYSTEM_CERTS := $(if $(wildcard /etc/ssl/certs/*),true,false)

.PHONY: book test layouts install lock clean

book: $(STAMP)
	@$(VENV) -m fer_book.cli build --profile $(PROFILE)

test: $(STAMP)
	@$(VENV) -m pytest

layouts: $(STAMP)
	@$(VENV) -m pytest -m layouts

install: $(STAMP)

$(STAMP): | .venv/bin/python
	@echo "installing the locked libraries into .venv: about 6 GB, once"
	@$(VENV) -m pip --version >/dev/null 2>&1 || $(VENV) -m ensurepip >/dev/null
	@$(VENV) -m pip install --quiet --disable-pip-version-check $(UV)
	@$(VENV) -m uv pip install --quiet --python $(VENV) -r requirements.lock
	@$(VENV) -m uv pip install --quiet --python $(VENV) --no-deps --editable .
	@rm -f .venv/installed-* && touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fer_book needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 book" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || \
	  { rm -rf .venv; echo "this Python cannot make virtual environments: install python3-venv, or name another one with PYTHON=" >&2; exit 1; }

lock: $(STAMP)
	@{ sed -n '/^#/p' requirements.lock; $(VENV) -m uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --upgrade --quiet --no-header --no-annotate --no-emit-index-url; } > requirements.new && mv requirements.new requirements.lock

clean:
	rm -rf _build
