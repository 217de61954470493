"""Which folders of a tree are splits and which are classes, or why nobody can say.

The rules, in this order:

1. A folder is a split where its name says so (`splits.NAMES`, in any case).
2. A folder that is alone at its level, and in which splits or several folders of images lie, is passed
   through: DIR/photos/{train,val}, DIR/train/train/{cat,dog}.
3. A folder "train" without another split is one if the other folders beside it hold no images, or if it has
   several folders of images and none by itself. It is a class among classes if it has no folders of images
   and lies beside two or more that may be classes. Else it may be either, and is refused.
4. Beside splits, other folders are left out. Splits further down, or names that only resemble those of
   splits, are refused: they would become classes.
5. A class is the first folder below the split; what lies deeper belongs to it. A folder that means "the
   images" (`folder_names`) is passed through where it is alone, and refused beside others, as masks are.
"""

from collections.abc import Collection
from dataclasses import dataclass

from data_pipelines.common.errors import UserError
from data_pipelines.sources import splits
from data_pipelines.sources.folder_names import (
    images_and_companions,
    is_companion,
    means_images,
    no_class,
    tuning,
)
from data_pipelines.sources.splits import few, nfc, printable
from data_pipelines.sources.tree import LINK_TO_NOTHING, Tree, join


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
    _refuse_links_to_nothing(tree, base, root)
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
    class_folders = {"train": _class_folder(tree, folders["train"])}
    classes = class_names(tree, class_folders["train"])
    _refuse_images_beside(tree, class_folders["train"], root)
    for split in folders.keys() - {"train"}:
        lower = _class_folder(tree, folders[split], classes)
        shared = class_names(tree, lower) & classes
        class_folders[split] = lower if shared else _below_images(tree, folders[split])
    layout = Layout(base, folders, class_folders, [join(base, name) for name in beside] if named else [])
    _refuse_deeper_splits(tree, layout, root)
    if named:
        _refuse_split_as_class(tree, class_folders["train"], root)
    _refuse_masks_in_classes(tree, layout, root)
    return layout


def _refuse_links_to_nothing(tree: Tree, base: str, root: str) -> None:
    """Refuses a link named after a split, beside the base or above, whose folder is gone."""
    for path, why in sorted(tree.left_out.items()):
        folder, _, name = path.rpartition("/")
        if why == LINK_TO_NOTHING and splits.of_folder(name) and _within(base, folder):
            raise UserError(
                f"from={root}: {printable(path)} is a link to nothing; mend it, or remove it if unused"
            )


def _within(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


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
    return at if len(tree.filled.get(at, ())) > 1 else _below_images(tree, split)


def _below_images(tree: Tree, split: str) -> str:
    """The folder of a split that its images or classes lie in, below folders that mean "the images"."""
    while (only := _only(tree, split)) and means_images(only, alone=True):
        split = join(split, only)
    return split


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
        f"{has} beside {few(filled)}; put the classes into a folder train, or rename {example} if it is "
        "a class"
    )


def _is_split(tree: Tree, base: str, train: str, filled: list[str], where: str) -> bool:
    """Whether the only folder named after a split is one (rule 3); `filled` lie beside it, with images."""
    folder = join(base, train)
    within = tree.filled.get(folder, set())
    alike = [name for name in filled if tree.filled.get(join(base, name), set()) & within]
    hint = next((f"rename {printable(name)} to val, " for name in filled if tuning(name)), "")
    if not within:
        _refuse_no_class_of_trains(tree, folder, train, filled, where, hint)
        return False
    if len(within) > 1 and folder not in tree.direct and not alike:
        return True
    raise UserError(
        f"{where}: is {train} the split or a class? {few(sorted(within))} in it and "
        f"{few(alike or filled)} beside it hold images; {hint}move the latter away, or "
        f"rename {train} if it is a class"
    )


def _refuse_no_class_of_trains(
    tree: Tree, folder: str, train: str, filled: list[str], where: str, hint: str
) -> None:
    """Refuses a train without class folders beside what need not be classes: one folder, masks, a dev."""
    odd = [name for name in filled if no_class(name) or splits.lookalike(name)]
    if folder in tree.direct and (odd or len(filled) == 1):
        raise UserError(
            f"{where}: is {train} the split or a class? It and {few(odd or filled)} beside it hold images; "
            f"{hint}give {where}/{train} for its images alone, or put class folders into a folder train"
        )


def _refuse_images_beside(tree: Tree, at: str, root: str) -> None:
    """Refuses images/ + masks/ and their like where the class folders lie."""
    if pair := images_and_companions(tree.filled.get(at, set()), at in tree.direct):
        images, other = map(printable, pair)
        where = join(root, printable(at))
        beside = f"{other} beside it" if other else "images loose beside it"
        raise UserError(
            f"from={root}: in {where}, {images} would be a class, with {beside}; give from={where}/{images} "
            "for it alone, or rename it if it is a class"
        )


def _refuse_masks_in_classes(tree: Tree, layout: Layout, root: str) -> None:
    """Refuses CLASS/images/ beside CLASS/masks/: the masks would be images of the class."""
    for folder in sorted(filter(layout.holds, tree.filled)):
        names = sorted(tree.filled[folder])
        masks = [name for name in names if is_companion(name)]
        if masks and any(map(means_images, names)):
            where = join(root, printable(folder))
            raise UserError(
                f"from={root}: the images in {where}/{printable(masks[0])} would be data as those beside it "
                "are; move them out of it"
            )


def _refuse_split_as_class(tree: Tree, at: str, root: str) -> None:
    """Refuses train/train/{cat,dog} beside train/{cat,dog}, and a val in train; a class of trains is one."""
    names = tree.filled.get(at, set())
    for name in sorted(names):
        split = splits.of_folder(name)
        if split and (split != "train" or tree.filled.get(join(at, name), set()) & names):
            where, name = join(root, printable(at)), printable(name)
            raise UserError(
                f"from={root}: {where} holds {name} beside class folders, so it would be a class; move "
                f"{name} out of it, or rename it if it is one"
            )


def _refuse_lookalikes(tree: Tree, base: str, where: str) -> None:
    """Refuses folders such as seg_train and seg_test, where most are so named, and trainset and testset."""
    folders = sorted(tree.filled.get(base, ()))
    alike = {name: split for name in folders if (split := splits.lookalike(name))}
    sets = {name: split for name, split in alike.items() if splits.is_set(name)}
    if 2 * len(alike) <= len(folders):
        alike = sets
    if len(set(alike.values())) > 1 and "train" in alike.values():
        wanted = " and ".join(dict.fromkeys(alike.values()))
        raise UserError(
            f"{where}: {few(list(alike))} would be classes; name splits {wanted}, and classes without "
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
                f"from={root}: {here} holds {few(names)}, which would be part of a class; give one folder "
                f"of splits, such as from={join(root, here)}, or rename them"
            )
