"""The texts on which two tokenizers are compared."""

from __future__ import annotations

PROBE = (
    # prose and its punctuation
    "The quick brown fox jumps over the lazy dog. It's what we've said, isn't it? I'LL say SO, we'D see.",
    "“Curly quotes”, ‘single’ ones — em-dashes – en-dashes… ellipses, and a naïve café’s façade.",
    "McDonald iPhone eBay HTTPServer getElementById snake_case_name kebab-case CamelCaseÉcole ÉCOLE",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis Donaudampfschifffahrt",
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@example.co.uk C:\\Users\\name\\file.txt /usr/bin/env",
    "Hello world!! What?!?! ... --- *** === <<< >>> ((())) [[{}]] ~~ `` ^^ $$ %% && || ## @@",
    # whitespace
    " leading",
    "  two leading",
    "trailing ",
    "trailing two  ",
    "a  b   c    d     e",
    "\t\ttabs\tand \t spaces",
    "line\nline\n\nparagraph\n\n\n\nmore",
    "windows\r\nline\r\n\r\nends",
    " \n \n  \n mixed\n \t\n",
    "\n",
    "\n\n",
    " ",
    "  ",
    "        ",
    "                                  x",
    "end of line   \n   next line",
    "",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth",
    "line\u2028separator, paragraph\u2029separator, next\u0085line, \ufeffmark",
    # numbers
    "0 1 12 123 1234 12345 123456 1234567 3.14159 -273.15 1e-10 0x1F 1,000,000 50% $99.99 №7 ½ ² Ⅷ",
    "2026-11-24T16:26:16Z +1 (555) 010-9999 192.168.0.1 v1.2.3-rc4 ٣٤٥ १२३ １２３ 一二三",
    # code
    'def f(x: int = 0) -> list[int]:\n    """Doc."""\n    return [i ** 2 for i in range(x) if i % 2 != 0]\n',
    '#include <stdio.h>\n\nint main(void) {\n\tprintf("%d\\n", 1 << 3);\n\treturn 0;\n}\n',
    '<div class="a b"><p>x &amp; y</p></div>\n<!-- note -->\n{"key": [1, 2.5, null, true]}\n',
    "SELECT * FROM t WHERE a >= 10 AND b <> 'it''s';\n\n$ grep -rn 'foo\\|bar' . | awk '{print $1}'\n",
    # scripts
    "Größe, Straße, Übermut; Œuvre, garçon, où; mañana ¿qué? ¡sí!; ação; Łódź, żółć; İstanbul, ığdır; Þór",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ґанок, їжак. Ђурађ",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ἐν ἀρχῇ ἦν ὁ λόγος. Հայերեն լեզու. ქართული ენა",
    "我能吞下玻璃而不伤身体。漢字、仮名交じり文。いろはにほへと ちりぬるを。カタカナ、ﾊﾝｶｸ。１２月",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. 한글",
    "نص حكيم له سر قاطع وذو شأن عظيم. گچ پژ. עטלף אבק נס דרך מזגן. שָׁלוֹם אֲנִי",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा। আমি কাঁচ খেতে পারি। ਪੰਜਾਬੀ ગુજરાતી தமிழ் மொழி తెలుగు ಕನ್ನಡ മലയാളം",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ພາສາລາວ ភាសាខ្មែរ မြန်မာဘာသာ བོད་སྐད་ አማርኛ ᏣᎳᎩ ᓀᐦᐃᔭᐍᐏᐣ",
    "Tiếng Việt có dấu: Mười hai con giáp. e\u0301 o\u0308 n\u0303 (combining) ſt ﬁ ﬂ Ⓐ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎",
    # symbols and emoji
    "😀😃 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ❤️ ☃ ✈️ 1️⃣ 🫠 a😀b 😀 c",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, ∑ᵢ₌₁ⁿ i² ≤ ∫₀^∞ e^{-t} dt ≠ √2 ± ∞ → ⇒ ⟨ψ|φ⟩ αβγ µm Å °C ©®™ €£¥₹ ¶§",
    "│├──┤ █▓▒░ ● ○ ◆ ★ ♪ ♠ ✓ ✗ \u0000 \u0007 \u001b[0m \u007f \ufffd \ue000 \U0010ffff",
)
