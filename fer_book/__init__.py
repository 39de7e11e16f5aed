"""Facial expression recognition, five papers re-built and checked number by number."""

import os

__version__ = "0.1.0"

# what this book and its libraries keep below the home folder: a variable for each, and its usual place
KEPT = {
    "FER_BOOK_CACHE": ".cache/fer_book",
    "XDG_CACHE_HOME": ".cache",
    "MPLCONFIGDIR": ".config/matplotlib",
    "FASTAI_HOME": ".fastai",
    "IPYTHONDIR": ".ipython",
    "JUPYTER_CONFIG_DIR": ".jupyter",
    "JUPYTER_DATA_DIR": ".local/share/jupyter",
}


def writable(folder: str) -> bool:
    """Whether files may be made in `folder`, or it itself where it is not there yet."""
    while not os.path.lexists(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def own_folder() -> str:
    """A temporary folder of this user's alone, made if need be; OSError where nothing can be written."""
    import tempfile

    folder = os.path.join(tempfile.gettempdir(), f"fer_book-{os.getuid()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if (
            found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000
        ):  # a link, a file, or open to others
            return tempfile.mkdtemp(prefix="fer_book-")
    return folder


def settle() -> str:
    """Let what the home folder cannot hold go to `own_folder()` (containers, unknown users).

    Returns that folder, or an empty text where nothing had to go there.
    """
    home = os.path.expanduser("~")
    there = os.path.isabs(home) and os.path.isdir(home)
    moved = {
        name: place
        for name, place in KEPT.items()
        if not os.environ.get(name) and not (there and writable(f"{home}/{place}"))
    }
    if not moved:
        return ""
    try:
        folder = own_folder()
    except OSError:  # nothing can be written anywhere: `fer-book doctor` says so
        return ""
    os.environ |= {name: f"{folder}/{place}" for name, place in moved.items()}
    if not there:
        os.environ["HOME"] = folder
    return folder


fallback = settle()
