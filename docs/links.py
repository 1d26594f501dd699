"""A Sphinx extension: the first use of a name or a word on a page links to its explanation.

Code such as `fit` links to the reference, words such as "mode" link to the glossary.
"""

import re

from docutils import nodes

GLOSSARY, KINDS = "glossary", ("class", "function")
WORDS = {
    "mode": "mode",
    "NLL": "NLL",
    "ECE": "ECE",
    "evidence": "evidence",
    "leaf": "leaf",
    "temperature": "temperature",
    "prior precision": "prior precision",
    "effective parameters": "effective parameters",
    "linearised": "linearised",
    "aleatoric": "aleatoric",
    "coverage": "coverage",
    "AUROC": "AUROC",
}
CALL = re.compile(r"(?:l2m\.)?([\w.]+)(?:\(.*\))?")
WORD = re.compile(rf"\b({'|'.join(WORDS)})\b")
CLOSED = (nodes.reference, nodes.title, nodes.thead, nodes.literal_block, nodes.term, nodes.math)


def name_terms(app, doctree):
    """Each entry of the glossary gets an address, made of its words."""
    if app.env.docname != GLOSSARY:
        return
    for term in doctree.findall(nodes.term):
        term["ids"] += [address(word) for word in term.astext().split(",")]


def address(word: str) -> str:
    return "term-" + nodes.make_id(word.strip())


def add_links(app, doctree, page):
    """The first use of each name, and of each word."""
    if page.startswith("generated/") or page == "changelog":
        return
    link_names(app, doctree, page)
    if page not in (GLOSSARY, "api") and GLOSSARY in app.env.all_docs:
        link_words(app, doctree, page)


def link_names(app, doctree, page):
    names, seen = documented(app.env.get_domain("py").objects), set()
    for literal in list(doctree.findall(nodes.literal)):
        found = CALL.fullmatch(literal.astext())
        entry = names.get(found[1]) if found else None
        if entry is None or entry.node_id in seen or is_closed(literal):
            continue
        seen.add(entry.node_id)
        uri = f"{app.builder.get_relative_uri(page, entry.docname)}#{entry.node_id}"
        literal.replace_self(nodes.reference("", "", literal.deepcopy(), refuri=uri, internal=True))


def documented(objects):
    """What pages call a name: `tuning.elbo`, or `elbo`."""
    names = {}
    for full, entry in objects.items():
        parts = full.split(".")[1:]
        if entry.docname.startswith("generated/") and entry.objtype in KINDS:
            names.setdefault(parts[-1], entry)
            names[".".join(parts)] = entry
    return names


def link_words(app, doctree, page):
    uri, seen = app.builder.get_relative_uri(page, GLOSSARY), set()
    for text in list(doctree.findall(nodes.Text)):
        found = next((f for f in WORD.finditer(text) if WORDS[f[1]] not in seen), None)
        if found is None or is_closed(text) or isinstance(text.parent, nodes.literal):
            continue
        seen.add(WORDS[found[1]])
        link = nodes.reference(
            "", found[1], refuri=f"{uri}#{address(WORDS[found[1]])}", internal=True
        )
        parts = nodes.Text(text[: found.start()]), link, nodes.Text(text[found.end() :])
        text.parent.replace(text, [part for part in parts if part.astext()])


def is_closed(node) -> bool:
    """Inside of what is a link already, or no prose."""
    while node is not None:
        if isinstance(node, CLOSED):
            return True
        node = node.parent
    return False


def setup(app):
    app.connect("doctree-read", name_terms)
    app.connect("doctree-resolved", add_links)
    return {"parallel_read_safe": True}
