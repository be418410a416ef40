"""Expected results of Hugging Face tokenizers, for the tokenizer's tests.

    python tokenizer.py goldens TOKENIZER_FOLDER OUT_FOLDER      encode, decode, stop_strings, invalid_utf8 .jsonl of one tokenizer
    python tokenizer.py variants OUT_FILE                        small tokenizers, one for each setting of tokenizer.json
    python tokenizer.py compare TOKENIZER_FOLDER N SEED COMMAND…  N random strings through COMMAND (it reads and writes rows as
                                                                 `calandra tokenize --jsonl` does) and through tokenizers

Needs the package tokenizers (goldens were made with 0.23.3). The rows mean what tests/oracle/text/tokenizer/README.md says.
"""

import codecs
import itertools
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer

SEED = 20
HAND = [
    "", " ", "  ", "\n", "\r\n", "\t", "a", "é", "e\u0301", "\u212b", "Hello, world!", " Hello", "Hello \n world", "a\n\n\nb", "x \n", "   leading",
    "I'm you're he's we'd they'll I've can't", "I'M YOU'RE HE'S", "'\u017f 'K", "12345", "٣٤٥", "1 234 567,89", "½²Ⅷ①", "한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "中文，标点符号！全角ＡＢＣ１２３", "👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 1️⃣", "Z\u0338\u0321\u0322\u031ba\u0336l\u0337g\u0338o", "def f(x):\n    return x**2  # square\n", "a\u180eb \u180e c",
    "\u2ebf0\u0897\ua7cb", "zero\u200bwidth\ufeff", "<|im_start|>user\nHi<|im_end|>\n", "<|im_start", "<think>\n\n</think>\n\nok", "<|im_start|><|im_start|>", "<<|im_end|>>",
    "\u0000\u0007", "\U0010ffff\ufffe", "a" * 300, " " * 100 + "x", "ab" * 150,
]
LETTERS = "aAbBzZéßñøſKΩжЯعहทあ中한ﬁǅⅧ𝔘𠀀\U0002ebf0\u1c89\ua7cb\U000105c0"
MARKS = "\u0300\u0301\u0308\u0316\u0323\u0334\u0345\u0897\u0898\u08ca\u093c\u0d3b\u1ab0\u1abf\u1dfa\u20dd\ufe0f\u200d\U0001e08f\U00011935\U00011930\u1161\u11a8\u3099"
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\u000b", "\u000c", "\u0085", "\u00a0", "\u180e", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\u200b"]
DIGITS = "0123456789٣९②½²Ⅷ〇\U00010d40\U0001d7d8"
PUNCTUATION = "'’\"-–_.,;:!?()[]{}<>|/\\@#$%^&*+=~`。、！«»…€☃🙂\U0001fae8\u0a76"
WORDS = "the of don't I'LL we've rock'n'roll server <think> </think> return naïve Straße Москва привет مرحبا नमस्ते สวัสดี こんにちは 世界 한국어 tiếng Việt http:// 3.14".split()
TRUNCATED = ["<|", "|>", "<|im_", "im_end|>", "<think", "think>", "<", ">", "|", "</", "<|endoftext|", "<tool_call"]
EVERY = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def random_text(rng, added):
    """A string from runs of one kind of character, special tokens and what looks like them, and code points of all Unicode."""
    makers = (
        lambda: rng.choice(LETTERS),
        lambda: rng.choice(LETTERS) + "".join(rng.choice(MARKS) for _ in range(rng.randint(0, 4))),
        lambda: "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 6))),
        lambda: "".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 5))),
        lambda: "".join(rng.choice(PUNCTUATION) for _ in range(rng.randint(1, 4))),
        lambda: rng.choice(["", " "]) + rng.choice(WORDS),
        lambda: rng.choice(added),
        lambda: rng.choice(TRUNCATED),
        lambda: chr(rng.choice(EVERY)),
        lambda: chr(rng.randrange(0x3000)),
        lambda: unicodedata.normalize(rng.choice(["NFD", "NFC", "NFKD"]), chr(rng.choice(EVERY))),
        lambda: rng.choice(["'s", "'S", "'re", "'LL", "'ſ", "'d", "'x", "'"]),
        lambda: rng.choice("aA 0.\n<") * rng.randint(1, 40),
    )
    return "".join(rng.choice(makers)() for _ in range(rng.randint(1, 12)))


class Reference:
    """The tokenizer, the same without added tokens, and the bytes of each token."""

    def __init__(self, folder):
        text = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
        self.full = Tokenizer.from_str(text)
        description = json.loads(text)
        description["added_tokens"] = []
        self.plain = Tokenizer.from_str(json.dumps(description))
        self.added = self.full.get_added_tokens_decoder()
        self.contents = [token.content for token in self.added.values()]
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [b for b in range(256) if b not in printable]
        self.byte = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}

    def ids(self, text, specials=True):
        return (self.full if specials else self.plain).encode(text, add_special_tokens=False).ids

    def bytes_of(self, token_id):
        if token_id in self.added:
            return self.added[token_id].content.encode()
        token = self.full.id_to_token(token_id)
        return b"" if token is None else bytes(self.byte[c] for c in token)

    def pieces(self, ids):
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return [decoder.decode(self.bytes_of(i)) for i in ids], decoder.decode(b"", final=True)


def encode_row(reference, text):
    ids, plain = reference.ids(text), reference.ids(text, False)
    return {"text": text, "ids": ids} | ({"ids_without_specials": plain} if plain != ids else {})


def decode_row(reference, ids):
    text, skipped = (reference.full.decode(ids, skip_special_tokens=skip) for skip in (False, True))
    pieces, flush = reference.pieces(ids)
    assert "".join(pieces) + flush == text
    return {"ids": ids, "text": text, "pieces": pieces, "flush": flush} | ({"text_skip_special": skipped} if skipped != text else {})


def stop_row(reference, ids, stops, include, least):
    """Stop strings are searched in list order after each token, in what is new and what could begin a match before it."""
    pieces, flush = reference.pieces(ids)
    text, reason, used, released, sent = "", None, len(ids), [], 0
    for step, piece in enumerate(pieces, 1):
        before, text = len(text), text + piece
        for stop in stops if step > least else []:
            found = text.find(stop, max(before - len(stop) + 1, 0))
            if found >= 0 and reason is None:
                reason, used, end = stop, step, found + (len(stop) if include else 0)
        if reason is not None:
            text = text[:end]
        held = 0 if reason is not None else max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        released.append(text[sent : max(sent, len(text) - held)])
        sent = max(sent, len(text) - held)
        if reason is not None:
            break
    else:
        text += flush
    return {"ids": ids, "stop": stops, "include_stop_str_in_output": include, "min_tokens": least, "text": text, "stop_reason": reason,
            "tokens_used": used, "released": released, "released_at_end": text[sent:]}


def write(path, kind, rows):
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({"id": f"{kind}/{number}"} | row, ensure_ascii=False) + "\n")
    print(f"{path.name}: {len(rows)} rows")


def goldens(folder, out):
    reference, rng, out = Reference(folder), random.Random(SEED), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    texts = HAND + [random_text(rng, reference.contents) for _ in range(400)]
    write(out / "encode.jsonl", "encode", [encode_row(reference, text) for text in texts])
    size = reference.full.get_vocab_size()
    lists = [reference.ids(text) for text in rng.sample(texts, 60)]
    lists += [[rng.randrange(size + 40) for _ in range(rng.randint(1, 9))] for _ in range(60)]
    lists += [[rng.choice(ids) for _ in range(rng.randint(1, 9))] for ids in [reference.ids("中文👨‍👩‍👧é한", False)] for _ in range(30)]
    write(out / "decode.jsonl", "decode", [decode_row(reference, ids) for ids in lists if ids])
    stops = []
    while len(stops) < 120:
        text = rng.choice(texts)
        if len(text) > 5:
            at = [rng.randrange(len(text) - 1) for _ in range(rng.randint(1, 3))]
            picks = [text[i : i + rng.randint(1, 6)] + rng.choice(["", "", "", "q"]) for i in at]
            ids = [i for c in text for i in reference.ids(c)] if rng.random() < 0.3 else reference.ids(text)
            stops.append(stop_row(reference, ids[:60], picks, rng.random() < 0.3, rng.choice([0, 0, 0, 2, 5])))
    write(out / "stop_strings.jsonl", "stop", stops)
    broken = [bytes.fromhex(h) for h in ("80", "bfbf", "c0af", "c3", "616263c328", "e282", "f09f98", "eda080", "f4908080", "f5808080", "fffe", "f888808080", "e4b8ade4", "00ff00")]
    broken += [bytes(rng.choice([rng.randrange(256), 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80]) for _ in range(rng.randint(1, 12))) for _ in range(40)]
    rows = [(data, data.decode("utf-8", errors="replace")) for data in broken]
    write(out / "invalid_utf8.jsonl", "invalid_utf8", [{"bytes_hex": d.hex(), "text": t, "ids": reference.ids(t)} for d, t in rows])


def variants(out):
    """One tokenizer for each setting, as changes to a base; the base's vocabulary is the 256 bytes and a few merges."""
    rng = random.Random(SEED)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    spelling = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocab = {spelling[b]: b for b in range(256)}
    merges = []
    for pair in "h e|he l|l o|hel lo|Ġ Ġ|ĠĠ ĠĠ|Ġ hello|a b|ab c|b c|a a|aa aa|Ã ©|e Ì|eÌ ģ|Ċ Ċ|1 2|12 3|' s|Ġ a|in g|i n|x y|y x|xy xy|ĠĠ Ġ".split("|"):
        left, right = pair.split()
        if left in vocab and right in vocab and left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    base = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
            "decoder": byte_level, "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                                             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges}}

    def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
        return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}

    def sequence(*steps):
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]}}

    def added(*tokens):
        flags = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        ids = itertools.count(len(vocab))
        return {"added_tokens": [{"id": vocab[content] if content in vocab else next(ids), "content": content} | flags | {name: True for name in names} for content, *names in tokens]}

    o200k = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
             r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    bailing = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    deepseek = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    nfc = {"normalizer": {"type": "NFC"}}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<b>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<e>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<b>": {"id": "<b>", "ids": [len(vocab)], "tokens": ["<b>"]}, "<e>": {"id": "<e>", "ids": [len(vocab) + 1], "tokens": ["<e>"]}}}
    cases = {
        "byte_level_regex": {"pre_tokenizer": byte_level | {"use_regex": True}},
        "byte_level_regex_prefix": {"pre_tokenizer": byte_level | {"use_regex": True, "add_prefix_space": True}},
        "prefix_after_split": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"\p{N}"), byte_level | {"add_prefix_space": True}]}},
        "o200k": sequence(split(o200k)), "bailing": sequence(split(bailing)),
        "deepseek": sequence(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(deepseek)),
        "may_be_empty": sequence(split(r"\s*")), "string": sequence(split("ab", kind="String")), "escapes": sequence(split(r"\u0061b|\x{e9}|\v|\.")),
        "two_splits": sequence(split(r"\s+", "Removed"), split("l", "MergedWithPrevious")),
        "look_around": sequence(split(r"(?<=l)(?=o)|(?<!a)b(?!c)|(?>a+)x")),
        "nfc_added_normalized": nfc | added(("é", "normalized"), ("e\u0301x", "normalized"), ("<s>",), ("éé", "normalized", "special")),
        "lstrip_rstrip": added(("<l>", "lstrip"), ("<r>", "rstrip", "special"), ("<lr>", "lstrip", "rstrip", "special"), (" <sp>",)),
        "single_word": added(("<w>", "single_word"), ("ab", "single_word"), ("hello", "single_word", "lstrip")),
        "overlap": added(("ab",), ("abc",), ("bcd",), ("hell", "special"), ("lo w",), ("<a", ), ("<a>",)),
        "added_latin1": added(("ñé",), ("｜x｜", "special"), ("Ġ",)),
        "template": added(("<b>", "special"), ("<e>", "special")) | {"post_processor": template},
        "template_in_sequence": added(("<b>", "special"), ("<e>", "special")) | {"post_processor": {"type": "Sequence", "processors": [byte_level, template]}},
        "ignore_merges": {"model": base["model"] | {"ignore_merges": True, "vocab": vocab | {"zzz": len(vocab), "Ġzebra": len(vocab) + 1}}} | sequence(split(r" ?\p{L}+")),
        "merges_as_strings": {"model": base["model"] | {"merges": [" ".join(m) for m in merges]}},
        "missing_byte": {"model": base["model"] | {"vocab": {t: i for t, i in vocab.items() if t not in ("q", "Ģ")}}},
        "same_result_twice": {"model": base["model"] | {"vocab": vocab | {"abc": vocab["abc"], "zz": len(vocab), "zzz": len(vocab) + 1}, "merges": merges + [["b", "c"], ["z", "z"], ["zz", "z"], ["z", "zz"]]}},
    }
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            cases[f"{behavior}_{invert}"] = sequence(split(r"[ a1]", behavior, invert))
    alphabet = ["a", "b", "c", "ab", "abc", "bcd", "hello", "hell", "lo w", " ", "  ", "    ", "\n", "\t", "\u00a0", "\u180e", "x", "xy", "y", "z", "zz", "zzz", " zebra", "q", "\u0080", "1", "12", "123", "é", "e\u0301", "e", "\u0301", "\u0323",
                "ñé", "ñ", "中", "の", "ſ", "'s", "'S", "'LL", "B", "É", "ǅ", ".", "<", ">", "<s>", "<l>", "<r>", "<lr>", "<sp>", "<w>", "<b>", "<e>", "<a", "<a>", "｜x｜", "Ġ", "👍", "_", "\u200d", "\u1c89", "\U0001fae8"]
    with Path(out).open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps({"base": base}, ensure_ascii=False) + "\n")
        for name, change in cases.items():
            tokenizer = Tokenizer.from_str(json.dumps(base | change))
            tokens = [t["content"] for t in change.get("added_tokens", [])]
            rows = []
            for _ in range(20):
                text = "".join(rng.choice(alphabet + tokens * 4) for _ in range(rng.randint(1, 12)))
                ids, full = (tokenizer.encode(text, add_special_tokens=s).ids for s in (False, True))
                rows.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False), "skipped": tokenizer.decode(ids, skip_special_tokens=True)} | ({"ids_with_added": full} if full != ids else {}))
            file.write(json.dumps({"name": name, "change": change, "cases": rows}, ensure_ascii=False) + "\n")
    print(f"{out}: {len(cases)} tokenizers")


def compare(folder, count, seed, command):
    reference, rng, wrong, done = Reference(folder), random.Random(int(seed)), 0, 0
    while done < int(count):
        texts = [random_text(rng, reference.contents) for _ in range(min(20000, int(count) - done))]
        rows = [{"text": text} for text in texts] + [{"text": text, "specials": False} for text in texts]
        expected = [reference.ids(text) for text in texts] + [reference.ids(text, False) for text in texts]
        answer = subprocess.run(command, input="".join(json.dumps(row) + "\n" for row in rows), capture_output=True, text=True, check=True).stdout.split("\n")
        for row, ids, line in zip(rows, expected, answer, strict=False):
            if json.loads(line)["ids"] != ids:
                wrong += 1
                if wrong <= 10:
                    print("differs:", json.dumps(row), ids, line)
        done += len(texts)
        print(f"{done} strings, with and without special tokens: {wrong} differ", flush=True)
    return wrong != 0


if __name__ == "__main__":
    modes = {"goldens": lambda a: goldens(*a), "variants": lambda a: variants(*a), "compare": lambda a: compare(*a[:3], a[3:])}
    if len(sys.argv) < 3 or sys.argv[1] not in modes:
        sys.exit(__doc__)
    sys.exit(modes[sys.argv[1]](sys.argv[2:]))
