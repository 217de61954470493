"""Which folders of a tree are splits and which are classes, or why nobody can say.

The rules, in this order:

1. A folder is a split where its name says so (`splits.NAMES`, in any case).
2. A folder that is alone at its level, and in which splits or several folders of images lie, is passed
   through: DIR/photos/{train,val}, DIR/train/train/{cat,dog}.
3. A folder "train" without another split is one if the other folders beside it hold no images, or if it has
   several folders of images and none by itself. It is a class among classes if it has no folders of images.
   Else it may be either, and is refused.
4. Beside splits, other folders are left out. Splits further down, or names that only resemble those of
   splits, are refused: they would become classes.
5. A class is the first folder below the split; what lies deeper belongs to it.
"""

from collections.abc import Collection
from dataclasses import dataclass

from data_pipelines.common.errors import UserError
from data_pipelines.sources import splits
from data_pipelines.sources.splits import nfc, printable
from data_pipelines.sources.tree import Tree, join


@dataclass(frozen=True)
class Layout:
    """What the folders of a tree are, by paths below its root.

    Args:
        base: the folder that holds the splits, or the classes; "" is the root.
        splits: {split: folder}; {"train": base} where none is named after a split.
        class_folders: {split: the folder that its class folders lie in}.
        others: folders beside the splits.
    """

    base: str
    splits: dict[str, str]
    class_folders: dict[str, str]
    others: list[str]

    def holds(self, path: str) -> bool:
        """Whether a path is a split's folder or lies in one."""
        return any(_within(path, folder) for folder in self.splits.values())


def find_layout(tree: Tree, root: str) -> Layout:
    """The layout of a tree. Raises UserError, naming the folder and what to do, where that is not clear.

    root: the tree's folder, for the message.
    """
    base = _base(tree)
    where = f"from={join(root, printable(base))}"
    named = _named_splits(tree, base, where)
    beside = sorted(tree.subfolders.get(base, set()) - set(named.values()))
    filled = [name for name in beside if name in tree.filled.get(base, ())]
    if named and "train" not in named:
        _refuse_without_train(named, filled, where)
    if list(named) == ["train"] and filled and not _is_split(tree, base, named["train"], filled, where):
        named = {}
    if not named:
        _refuse_lookalikes(tree, base, where)
    folders = {split: join(base, name) for split, name in named.items()} or {"train": base}
    class_folders = {"train": _class_folder(tree, folders["train"]) if named else base}
    classes = class_names(tree, class_folders["train"])
    for split in folders.keys() - {"train"}:
        lower = _class_folder(tree, folders[split], classes)
        class_folders[split] = lower if class_names(tree, lower) & classes else folders[split]
    layout = Layout(base, folders, class_folders, [join(base, name) for name in beside] if named else [])
    _refuse_deeper_splits(tree, layout, root)
    return layout


def _within(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _few(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")


def class_names(tree: Tree, folder: str) -> set[str]:
    """The names of the class folders in a folder, in the one normal form that they are compared in."""
    return {nfc(name) for name in tree.filled.get(folder, ())}


def _base(tree: Tree) -> str:
    """The folder that holds splits or several folders, below folders that are alone; else the root."""
    at = ""
    while not _split_names(tree, at) and (only := _only(tree, at)):
        at = join(at, only)
    return at if _split_names(tree, at) or len(tree.filled.get(at, ())) > 1 else ""


def _class_folder(tree: Tree, split: str, classes: Collection[str] = ()) -> str:
    """The folder that holds a split's classes, below folders that are alone and no class; or the split's."""
    at = split
    while only := _only(tree, at):
        if nfc(only) in classes:
            return at
        at = join(at, only)
    return at if len(tree.filled.get(at, ())) > 1 else split


def _only(tree: Tree, folder: str) -> str | None:
    """The name of the folder in a folder that alone holds all its images; None: there is no such folder."""
    names = tree.filled.get(folder, set())
    return next(iter(names)) if len(names) == 1 and folder not in tree.direct else None


def _split_names(tree: Tree, folder: str) -> list[str]:
    """The folders in a folder that are named after splits; without a train, those that hold images."""
    names = sorted(name for name in tree.subfolders.get(folder, ()) if splits.of_folder(name))
    if any(splits.of_folder(name) == "train" for name in names):
        return names
    return [name for name in names if name in tree.filled.get(folder, ())]


def _named_splits(tree: Tree, base: str, where: str) -> dict[str, str]:
    """{split: the name of its folder}, train first."""
    named: dict[str, str] = {}
    for name in _split_names(tree, base):
        split = splits.of_folder(name) or ""
        if split in named:
            raise UserError(f"{where}: {named[split]} and {name} are both {split}; remove one of them")
        named[split] = name
    return dict(sorted(named.items(), key=lambda item: item[0] != "train"))


def _refuse_without_train(named: dict[str, str], filled: list[str], where: str) -> None:
    has = f"{where} has {', '.join(named.values())} but no train"
    if not filled:
        raise UserError(f"{has}; give the folder above them")
    example = next(iter(named.values()))
    raise UserError(
        f"{has} beside {_few(filled)}; put the classes into a folder train, or rename {example} if it is "
        "a class"
    )


def _is_split(tree: Tree, base: str, train: str, filled: list[str], where: str) -> bool:
    """Whether the only folder named after a split is one (rule 3); `filled` lie beside it, with images."""
    folder = join(base, train)
    within = tree.filled.get(folder, set())
    alike = [name for name in filled if tree.filled.get(join(base, name), set()) & within]
    if not within:
        return False
    if len(within) > 1 and folder not in tree.direct and not alike:
        return True
    raise UserError(
        f"{where}: is {train} the split or a class? {_few(sorted(within))} in it and "
        f"{_few(alike or filled)} beside it hold images; move the latter away, or rename {train} if it is "
        "a class"
    )


def _refuse_lookalikes(tree: Tree, base: str, where: str) -> None:
    """Refuses folders such as seg_train and seg_test, where most folders are so named."""
    folders = sorted(tree.filled.get(base, ()))
    alike = {name: split for name in folders if (split := splits.named(name))}
    if len(set(alike.values())) > 1 and "train" in alike.values() and 2 * len(alike) > len(folders):
        wanted = " and ".join(dict.fromkeys(alike.values()))
        raise UserError(
            f"{where}: {_few(list(alike))} would be classes; name splits {wanted}, and classes without "
            "these words"
        )


def _refuse_deeper_splits(tree: Tree, layout: Layout, root: str) -> None:
    """Refuses splits inside a class, as where DIR/a/{train,val} and DIR/b/{train,val} lie."""
    for folder in sorted(tree.filled):
        if folder == layout.base or not layout.holds(folder):
            continue
        names = [name for name in _split_names(tree, folder) if name in tree.filled[folder]]
        named = {splits.of_folder(name): name for name in names}
        train = join(folder, named.get("train", ""))
        if "train" not in named or any(_within(at, train) for at in layout.class_folders.values()):
            continue
        if len(named) > 1 or (_only(tree, folder) and len(tree.filled.get(train, ())) > 1):
            here = printable(folder)
            raise UserError(
                f"from={root}: {here} holds {_few(names)}, which would be part of a class; give one folder "
                f"of splits, such as from={join(root, here)}, or rename them"
            )
