"""Files and folders that systems leave beside data: thumbnails, deleted files, AppleDouble files, caches.

None of them is ever a class or an image, although a folder of thumbnails or of deleted files is full of
images.
"""

# Compared without regard to case. What begins with a dot (.DS_Store, ._x.png, .Trash-1000,
# .ipynb_checkpoints) is hidden, and Thumbs.db is not named as an image is; neither needs an entry.
FOLDERS = frozenset(
    {
        "__macosx",  # zip archives of macOS
        "@eadir",  # Synology: thumbnails
        "#recycle",  # Synology
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "lost+found",  # ext4
        "$recycle.bin",  # Windows
        "system volume information",
        "found.000",
        "network trash folder",  # netatalk
        "temporary items",
        "__pycache__",
    }
)
# Why an entry is clutter.
HIDDEN_FILE, HIDDEN_FOLDER = "a hidden file", "a hidden folder"
SYSTEM_FOLDER = "a folder of the system"

# Why a file, or a member of a tar, belongs to no image.
NOT_NAMED_AS_IMAGE = "its name is no image's"
NO_IMAGE = "its sample has no image"


def clutter(name: str, is_folder: bool) -> str | None:
    """Why an entry of a folder is no data: it is hidden or the system's; None: it may be data."""
    if name.startswith(".") and name not in (".", ".."):
        return HIDDEN_FOLDER if is_folder else HIDDEN_FILE
    return SYSTEM_FOLDER if is_folder and name.casefold() in FOLDERS else None


def clutter_in(path: str) -> str | None:
    """Why the file at a path is no data: it, or a folder that it lies in, is hidden or the system's."""
    *folders, name = path.split("/")
    for folder in folders:
        if why := clutter(folder, is_folder=True):
            return f"it lies in {folder}, {why}"
    return clutter(name, is_folder=False)
