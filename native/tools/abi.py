"""The border of the library as text: exported symbols, functions, constants, and where each field of a struct lies.

    python native/tools/abi.py LIBLATENTRT            print it
    python native/tools/abi.py LIBLATENTRT --write    record it in native/abi.txt, which a test compares

A change of the record is a change of what programs were compiled with: fields are added at the end of a struct, and
nothing else moves while `LATENTRT_ABI_VERSION` stays.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

NATIVE = Path(__file__).parent.parent
HEADER = NATIVE / "include" / "latentrt" / "latentrt.h"
RECORD = NATIVE / "abi.txt"


def exports(library: Path) -> list[str]:
    """Names of the defined dynamic symbols, without the version's own."""
    lines = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return sorted(line.split()[2].partition("@")[0] for line in lines.splitlines() if line.split()[1] != "A")


def soname(library: Path) -> str:
    """The name that programs are linked with."""
    text = subprocess.run(["objdump", "-p", library], capture_output=True, text=True, check=True).stdout
    return re.findall(r"SONAME\s+(\S+)", text)[0]


def _header() -> str:
    """The header without comments and preprocessor."""
    text = re.sub(r"/\*.*?\*/", " ", HEADER.read_text(), flags=re.DOTALL)
    return re.sub(r"(?m)^\s*#.*$", "", text)


def functions() -> Iterator[str]:
    """Declarations, one a line."""
    for found in re.finditer(r"LATENTRT_API\s+([^;]+);", _header()):
        yield " ".join(found[1].split())


def layout() -> str:
    """Sizes of structs, offsets of fields and values of constants, as a C compiler sees them."""
    structs = re.findall(r"typedef struct (\w+) \{(.*?)\} \w+;", _header(), flags=re.DOTALL)
    enums = re.findall(r"typedef enum (\w+) \{(.*?)\} \w+;", _header(), flags=re.DOTALL)
    lines = []
    for name, body in structs:
        lines.append(f'printf("struct {name}: %zu bytes\\n", sizeof({name}));')
        for field in re.findall(r"(\w+);", body):
            value = f"(({name} *)0)->{field}"
            lines.append(f'printf("  %4zu %2zu {field}\\n", offsetof({name}, {field}), sizeof({value}));')
    for name, body in enums:
        lines.append(f'printf("enum {name}: %zu bytes\\n", sizeof({name}));')
        lines += [f'printf("  %d {constant}\\n", (int){constant});' for constant in re.findall(r"(LATENTRT_\w+)", body)]
    program = (
        "#include <latentrt/latentrt.h>\n#include <stdio.h>\nint main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}"
    )
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "layout.c", Path(folder) / "layout"
        source.write_text(program)
        subprocess.run(["cc", "-std=c11", f"-I{NATIVE / 'include'}", source, "-o", binary], check=True)
        return subprocess.run([binary], capture_output=True, text=True, check=True).stdout


def record(library: Path) -> str:
    """All of it."""
    declared = "\n".join(sorted(functions()))
    exported = "\n".join(exports(library))
    return f"SONAME {soname(library)}\n\nexports:\n{exported}\n\nfunctions:\n{declared}\n\n{layout()}"


def main() -> int:
    """Print or write the record."""
    parser = argparse.ArgumentParser(description="The border of the library as text.")
    parser.add_argument("library", type=Path)
    parser.add_argument("--write", action="store_true", help=f"replace {RECORD.name}")
    arguments = parser.parse_args()
    text = record(arguments.library)
    if arguments.write:
        RECORD.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
