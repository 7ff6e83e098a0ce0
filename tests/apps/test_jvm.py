"""apps/jvm: Tsm by JNI and Ffm by java.lang.foreign, built and run as users do; and what can be
built of docs/android-ios.md without a phone's tools.

make test-apps-jvm
"""

from __future__ import annotations

import os
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from commands import ONNX, ROOT, TFLITE
from commands import output as python_output
from programs import assert_vectors, install, output, run, shell_commands, vector_lines

APP, TESTS = ROOT / "apps/jvm", ROOT / "tests/apps"
ZIG = [ROOT / "build/zig/bin/python", "-m", "ziglang", "cc"]
LIBRARY = APP / "build/libtsm.so"
CHECKS = re.findall(r"^    static void (\w+)\(\) ", (TESTS / "JniChecks.java").read_text(), re.M)
SHARE_BYTES = 20_000_000  # over a JVM that does nothing
EMPTY = """
public final class Empty {
    public static void main(String[] arguments) {}
}
"""
# Runs a command and says last, in KiB, the most memory that it held. A child begins with the peak
# of its parent, and this one is small.
PEAK = """if True:
    import os, sys
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    print(os.wait4(child, 0)[2].ru_maxrss, file=sys.stderr)
"""


def home(version: int) -> Path | None:
    """A JDK of this version or later: the oldest."""
    found = {}
    for javac in Path("/usr/lib/jvm").glob("*/bin/javac"):
        folder = javac.resolve().parent.parent
        release = (folder / "release").read_text()
        found[int(re.search(r'JAVA_VERSION="(\d+)', release)[1])] = folder
    return found[min(later)] if (later := [v for v in found if v >= version]) else None


@cache
def jdk(version: int) -> Path:
    install(cc="build-essential")
    if version <= 17 and not home(version):
        install(javac="openjdk-17-jdk-headless")
    found = home(version)
    assert found, f"no JDK {version} or later in /usr/lib/jvm, wanted one: Debian 12 has none"
    return found


@pytest.fixture(scope="session")
def classes(tmp_path_factory) -> Path:
    """Of the tests, beside a build of the app."""
    java = jdk(17)
    output("make", "-s", "-C", APP, f"JAVA_HOME={java}")
    folder = tmp_path_factory.mktemp("classes")
    empty = folder / "Empty.java"
    empty.write_text(EMPTY)
    sources = [TESTS / "JniVectors.java", TESTS / "JniChecks.java", empty]
    output(java / "bin/javac", "-d", folder, "-cp", APP / "build", *sources)
    return folder


def java(version: int, classes: Path) -> list[object]:
    """The beginning of a command."""
    paths = [f"-Djava.library.path={LIBRARY.parent}", "-cp", f"{LIBRARY.parent}:{classes}"]
    return [jdk(version) / "bin/java", "--enable-native-access=ALL-UNNAMED", *paths]


@pytest.mark.parametrize("version", [17, 22])
@pytest.mark.parametrize("check", CHECKS)
def test_what_the_class_promises(check, version, classes):
    found = output(*java(version, classes), "-Xcheck:jni", "JniChecks", TFLITE, ONNX, check)
    assert found.splitlines()[-1:] == [b"holds"] and b"WARNING" not in found, found.decode()


@pytest.mark.parametrize("version", [17, 22])
def test_vectors_hold_by_jni(version, classes):
    command = [*java(version, classes), "tsm.JniVectors", TFLITE]
    assert_vectors(output(*command, input=vector_lines()))


def test_vectors_hold_by_ffm(classes, tmp_path):
    folder = jdk(22) / "bin"
    sources = [APP / "Ffm.java", TESTS / "FfmVectors.java"]
    output(folder / "javac", "-d", tmp_path, "-Xlint:all,-restricted", "-Werror", *sources)
    command = [folder / "java", "--enable-native-access=ALL-UNNAMED", "-cp", tmp_path, "FfmVectors"]
    assert_vectors(output(*command, LIBRARY, TFLITE, input=vector_lines()))


def test_ffm_refuses_in_one_line_and_closes_twice(classes, tmp_path):
    (tmp_path / "Misused.java").write_text("""
import java.nio.file.Path;
import java.util.List;

public final class Misused {
    public static void main(String[] arguments) throws Exception {
        Ffm tsm = new Ffm(Path.of(arguments[0]), arguments[1]);
        try {
            tsm.generate(1, List.of(""), System.out::print);
        } catch (IllegalArgumentException error) {
            System.out.println(error.getMessage());
        }
        tsm.close();
        tsm.close();
        try {
            tsm.feed(new byte[1]);
        } catch (IllegalStateException error) {
            System.out.println(error.getMessage());
        }
        new Ffm(Path.of(arguments[0]), "nowhere");
    }
}
""")
    folder = jdk(22) / "bin"
    output(folder / "javac", "-d", tmp_path, APP / "Ffm.java", tmp_path / "Misused.java")
    command = [folder / "java", "--enable-native-access=ALL-UNNAMED", "-cp", tmp_path, "Misused"]
    done = run(*command, LIBRARY, TFLITE)
    assert done.stdout == b"stops: an empty one, wanted a character\nclosed\n"
    assert done.returncode == 1
    assert b"IllegalArgumentException: the file cannot be opened" in done.stderr


def peak_bytes(*command: object) -> int:
    done = run("python3", "-ISc", PEAK, *command)
    return int(done.stderr.splitlines()[-1]) * 1024


def test_the_model_takes_little_over_an_empty_jvm(classes):
    """The least of five runs each: what a JVM takes for itself differs from run to run."""
    beginning = java(17, classes)
    empty = min(peak_bytes(*beginning, "Empty") for _ in range(5))
    ours = min(peak_bytes(*beginning, "Sample", TFLITE, "JULIET:", 1) for _ in range(5))
    print(f"empty {empty:,}, with a model {ours:,}: {ours - empty:,} bytes")
    assert TFLITE.stat().st_size < ours - empty <= SHARE_BYTES


def test_the_commands_of_the_page_run(classes, tmp_path):
    for folder in ROOT.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    commands = shell_commands(APP / "README.md")
    assert len(commands) == 3
    texts = []
    for command in commands:
        environment = {**os.environ, "JAVA_HOME": str(jdk(22 if "Ffm" in command else 17))}
        environment["PATH"] = f"{environment['JAVA_HOME']}/bin:{environment['PATH']}"
        texts.append(output("bash", "-c", command, cwd=tmp_path, env=environment))
    wanted = python_output("generate", "--seed", 1, "--bytes", 200, "--prompt", "JULIET:")
    assert texts[1:] == [wanted, wanted]


def test_the_program_of_the_page_compiles_and_writes_what_python_writes(classes, tmp_path):
    page = (APP / "README.md").read_text()
    assert len(page.split()) <= 400
    (program,) = re.findall(r"^```java\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "Page.java").write_text(
        "import java.util.Iterator;\nimport tsm.Tsm;\n\npublic final class Page {\n"
        f"public static void main(String[] arguments) throws Exception {{\n{program}}}\n}}\n"
    )
    (tmp_path / TFLITE.name).symlink_to(TFLITE)
    output(jdk(17) / "bin/javac", "-d", tmp_path, "-cp", LIBRARY.parent, tmp_path / "Page.java")
    found = output(*java(17, tmp_path), "Page", cwd=tmp_path)
    settings = ("--seed", 1, "--temperature", 0.7, "--stop", "\n\n", "--bytes", 500)
    assert found == python_output("generate", *settings)


PHONES = (ROOT / "docs/android-ios.md").read_text()
# In place of Android: an asset that lies somewhere in a file.
ASSETS = {
    "AssetManager": """
        public class AssetManager {
            public AssetFileDescriptor openFd(String name) throws java.io.IOException {
                return new AssetFileDescriptor(name);
            }
        }""",
    "AssetFileDescriptor": """
        public class AssetFileDescriptor implements java.io.Closeable {
            private final java.io.FileInputStream file;
            AssetFileDescriptor(String name) throws java.io.IOException {
                file = new java.io.FileInputStream(name);
            }
            public java.io.FileDescriptor getFileDescriptor() throws java.io.IOException {
                return file.getFD();
            }
            public long getStartOffset() { return 1004; }
            public long getDeclaredLength() throws java.io.IOException {
                return file.getChannel().size() - 1004 - 500;
            }
            public void close() throws java.io.IOException { file.close(); }
        }""",
}
COMPLETE = """
public final class Complete {
    public static void main(String[] arguments) throws Exception {
        android.content.res.AssetManager assets = new android.content.res.AssetManager();
        try (Completer completer = new Completer(assets, arguments[0])) {
            completer.complete(arguments[1], () -> true, System.out::print);
            completer.complete(arguments[1], () -> false, System.out::print);
        }
    }
}
"""


def block(kind: str, beginning: str = "") -> str:
    """The page's only block of a kind that begins so."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```$", PHONES, re.M | re.S)
    (found,) = [text for text in blocks if text.startswith(beginning)]
    return found


def test_the_page_of_phones_builds_and_completes_from_an_asset(classes, tmp_path):
    install(cmake="cmake")
    source = tmp_path / "cpp"
    shutil.copytree(ROOT / "runtime/native", source / "native", ignore=lambda *_: ["libtsm.so"])
    shutil.copy(APP / "tsm_jni.c", source)
    (source / "CMakeLists.txt").write_text(block("cmake"))
    flags = f"-I{jdk(17)}/include -I{jdk(17)}/include/linux -Wno-psabi"
    output("cmake", "-S", source, "-B", tmp_path, env={**os.environ, "CFLAGS": flags})
    output("cmake", "--build", tmp_path)
    (tmp_path / "Completer.java").write_text(block("java"))
    (tmp_path / "Complete.java").write_text(COMPLETE)
    for name, text in ASSETS.items():
        (tmp_path / f"{name}.java").write_text(f"package android.content.res;\n{text}")
    sources = [*tmp_path.glob("*.java"), APP / "tsm/Tsm.java"]
    output(jdk(17) / "bin/javac", "-Xlint:all,-serial", "-Werror", "-d", tmp_path, *sources)
    packed = tmp_path / "packed"
    packed.write_bytes(bytes(1004) + TFLITE.read_bytes() + bytes(500))
    command = [jdk(17) / "bin/java", f"-Djava.library.path={tmp_path}", "-cp", tmp_path, "Complete"]
    found = output(*command, packed, "ROMEO:\nI ")
    settings = ("--seed", 0, "--bytes", 60, "--stop", "\n", "--prompt", "ROMEO:\nI ")
    assert found == python_output("generate", *settings)


def test_the_library_has_pages_of_16_kb_on_arm(classes, tmp_path):
    cmake = block("cmake")
    (sources,) = re.findall(r"add_library\(tsm SHARED (.*)\)", cmake)
    (options,) = re.findall(r"target_compile_options\(tsm PRIVATE ([^)]*)\)", cmake)
    (link,) = re.findall(r"target_link_options\(tsm PRIVATE (.*)\)", cmake)
    native = ROOT / "runtime/native"
    files = [APP / "tsm_jni.c" if "jni" in name else native / "tsm.c" for name in sources.split()]
    include = [f"-I{folder}" for folder in (native, jdk(17) / "include", jdk(17) / "include/linux")]
    library = tmp_path / "libtsm.so"
    flags = [*options.split(), *link.split(), *include, "-fPIC", "-shared"]
    output(*ZIG, "--target=aarch64-linux-musl", *flags, "-o", library, *files)
    segments = output("readelf", "-l", library).decode()
    loads = re.findall(r"LOAD.*\n.* (0x[0-9a-f]+)$", segments, re.M)
    assert loads and set(loads) == {"0x4000"}


def test_the_module_of_swift_compiles_for_apple(tmp_path):
    folder = tmp_path / "Sources/CTSM"
    shutil.copytree(ROOT / "runtime/native", folder, ignore=lambda *_: ["libtsm.so"])
    (folder / "include").mkdir()
    (folder / "tsm.h").rename(folder / "include/tsm.h")
    (folder / "include/module.modulemap").write_text(block("text", "module CTSM"))
    package = block("text", "// swift-tools-version")
    (named,) = re.findall(r'sources: \["(.*)"\]', package)
    flags = re.findall(r'"(-\S+)"', package)
    compiler = [*ZIG, "--target=aarch64-macos", *flags, "-Wall", "-Wextra", "-Werror", "-Iinclude"]
    output(*compiler, "-c", named, "-o", "tsm.o", cwd=folder)
    user = folder / "user.m"
    user.write_text("@import CTSM;\nint main(void) { return tsm_version() != TSM_VERSION; }\n")
    modules = ["-fmodules", f"-fmodules-cache-path={tmp_path}"]
    output(*compiler, *modules, "-c", user, "-o", "user.o", cwd=folder)


def test_swift_calls_what_there_is():
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "runtime/native/tsm.h").read_text(), flags=re.S)
    swift = block("swift")
    for name, arguments in re.findall(r"(tsm_\w+)\(([^()]*(?:\([^()]*\))?[^()]*)\)", swift):
        (wanted,) = re.findall(rf"\b{name}\(([^)]*)\)", header)
        assert arguments.count(",") == wanted.count(","), name
    assert len(PHONES.split()) <= 700


def test_one_library_serves_both():
    names = output("nm", "-D", "--defined-only", LIBRARY).decode()
    assert "Java_tsm_Tsm_open" in names and "tsm_open_file" in names
    shown = output("make", "-n", "-C", ROOT, "test-apps-jvm").decode()
    assert "tests/apps/test_jvm.py" in shown
