"""The examples of the C++ SDK: the search on the command line, and the HTTP service."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from uniecs.catalog import Product
from uniecs.engine import SearchEngine

cpp = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("cpp_sdk.py"))))


def test_the_search_example_runs(cpp_sdk_build: Path, tiny_bundle: Path, tiny_encoder: Any, tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "a.uniecs", tiny_encoder) as engine:
        engine.add(cpp.as_products(cpp.shop(30)))
        expected = engine.search("red dress", where={"price": (None, 50)})
    command = [cpp_sdk_build / "search", tmp_path / "a.uniecs", tiny_bundle, "red dress", ""]
    done = subprocess.run(
        [*command, '{"price": {"$between": [null, 50]}}'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [f"{hit.score:.4f}  {hit.id}  {hit.product.title}" for hit in expected]
    assert done.stdout.splitlines() == lines
    assert subprocess.run(command[:2], capture_output=True, check=False).returncode == 2


@contextlib.contextmanager
def served(program: Path, folder: Path, bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The service on a free port, and its address."""
    command = [str(program), str(folder), str(bundle), "0", "127.0.0.1", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            line = service.stdout.readline()
            assert line.startswith("listening on 127.0.0.1:"), line
            yield service, f"http://{line.split()[2]}"
        finally:
            service.kill()


def get(url: str, data: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, data, {"Content-Type": "image/png"} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_service(cpp_sdk_build: Path, tiny_bundle: Path, tiny_encoder: Any, tmp_path: Path) -> None:
    if not (cpp_sdk_build / "service").exists():
        pytest.skip("libcpp-httplib-dev is not installed")
    picture = tmp_path / "red.png"
    Image.new("RGB", (24, 32), "red").save(picture)
    with SearchEngine.create(tmp_path / "a.uniecs", tiny_encoder) as engine:
        engine.add([*cpp.as_products(cpp.shop(30)), Product("photo", 'a "quoted"\n title', str(picture), {})])
        by_text = cpp.pairs_of(engine.search("red dress", k=3, where={"price": (None, 50)}))
        by_both = engine.search("red", picture, k=2)
    where = urllib.parse.quote('{"price": {"$between": [null, 50]}}')
    with served(cpp_sdk_build / "service", tmp_path / "a.uniecs", tiny_bundle) as (service, url):
        assert get(f"{url}/health") == (200, {"status": "ok", "products": 31})
        status, found = get(f"{url}/search?text=red+dress&k=3&where={where}")
        assert status == 200 and cpp.same([(hit["id"], hit["score"]) for hit in found["hits"]], by_text)
        status, found = get(f"{url}/search?text=red&k=2", picture.read_bytes())
        assert status == 200 and cpp.same([(hit["id"], hit["score"]) for hit in found["hits"]], cpp.pairs_of(by_both))
        (drawn,) = [hit for hit in get(f"{url}/search?text=red&k=31")[1]["hits"] if hit["id"] == "photo"]
        assert (drawn["title"], drawn["image"]) == ('a "quoted"\n title', str(picture))
        for query in ("", "?text=", "?text=red&k=0", "?text=red&k=x", "?text=red&view=none", "?text=red&where=%7B"):
            status, found = get(f"{url}/search{query}")
            assert status == 400 and found["error"], query
        assert get(f"{url}/search", b"no picture")[0] == 400
        command = [cpp_sdk_build / "service", tmp_path / "a.uniecs", tiny_bundle, url.rpartition(":")[2]]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        assert second.returncode == 1 and "cannot listen on 127.0.0.1:" in second.stderr
        for rest in (["x"], ["70000"], ["0", "127.0.0.1", "0"]):  # a port that is none, no worker
            refused = subprocess.run([*command[:3], *rest], capture_output=True, text=True, check=False, timeout=20)
            assert refused.returncode == 1 and "; expected " in refused.stderr, rest
        takes_bodies_of_many_kinds(url, picture)
        stops_gracefully(service, url, picture)
    with served(cpp_sdk_build / "service", tmp_path / "a.uniecs", tiny_bundle) as (service, url):
        stops_at_once_at_a_second_signal(service, url)


def takes_bodies_of_many_kinds(url: str, picture: Path) -> None:
    def status(body: bytes, kind: str, query: str = "text=red&k=1") -> int:
        with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
            framed = {"Transfer-Encoding": "chunked"} if kind == "chunked" else {"Content-Type": kind}
            chunks = (body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))
            data = chunks if kind == "chunked" else body
            connection.request("POST", f"/search?{query}", data, framed, encode_chunked=kind == "chunked")
            return connection.getresponse().status

    photo = picture.read_bytes()
    assert status(photo, "chunked") == 200
    assert status(photo, "application/x-www-form-urlencoded") == 200  # curl's own
    assert status(photo + bytes(10_000), "application/x-www-form-urlencoded") == 200
    part = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n' + photo + b"\r\n--b--\r\n"
    assert status(part, "multipart/form-data; boundary=b") == 400  # no search for the text alone
    assert status(bytes(20_000_001), "chunked") == 413
    assert status(bytes(20_000_001), "image/png") == 413


def stops_at_once_at_a_second_signal(service: subprocess.Popen[str], url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as slow:
        slow.sendall(b"GET /search?te")
        time.sleep(0.3)
        service.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert service.poll() is None
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=2) == -signal.SIGTERM  # the worker would wait for five seconds


def stops_gracefully(service: subprocess.Popen[str], url: str, picture: Path) -> None:
    """SIGTERM while requests are under way: each that was begun is answered, then the process ends by itself."""
    host, port = url.removeprefix("http://").split(":")
    body = picture.read_bytes()
    head = f"POST /search?text=red&k=2 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    slow = [socket.create_connection((host, int(port)), timeout=60) for _ in range(2)]
    for each in slow:
        each.sendall(head.encode() + body[:-1])
    time.sleep(0.3)  # both are with a worker now
    service.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert service.poll() is None
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=5).close()
    for each in slow:
        each.sendall(body[-1:])
        answer = b""
        while data := each.recv(65536):
            answer += data
        each.close()
        assert answer.startswith(b"HTTP/1.1 200") and len(json.loads(answer.partition(b"\r\n\r\n")[2])["hits"]) == 2
    assert service.wait(timeout=60) == 0
    assert service.stdout is not None and service.stdout.read() == "stopped\n"


C_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <uniecs/uniecs.h>

static uniecs_engine* engine = NULL;

static void at_exit(void) { uniecs_engine_free(engine); }

int main(int argc, char** argv) {
    uniecs_encoder* encoder = NULL;
    uniecs_hits* hits = NULL;
    uniecs_item item = {.text = "red dress"};
    uniecs_product product = {.id = "new", .title = "grey watch"};
    atexit(at_exit);
    if (argc < 3 || uniecs_encoder_load(argv[2], NULL, "fp32", 1, &encoder) != UNIECS_OK ||
        uniecs_engine_open(argv[1], encoder, NULL, &engine) != UNIECS_OK ||
        uniecs_engine_search(engine, &item, 3, NULL, "{\"price\": {\"$between\": [null, 50]}}", &hits) != UNIECS_OK ||
        uniecs_engine_add(engine, &product, 1, NULL) != UNIECS_OK) {
        fprintf(stderr, "%s\n", uniecs_error_message());
        return 1;
    }
    for (size_t i = 0; i < uniecs_hits_count(hits, 0); i++) puts(uniecs_hits_at(hits, 0, i)->id);
    uniecs_hits_free(hits);
    uniecs_encoder_free(encoder);
    return 0;
}
"""
# What C has no way to ask for.
CPP_PROGRAM = r"""
#include <cstdio>
#include <uniecs/uniecs.hpp>

template <typename Refused, typename Call>
void refused(Call call) {
    try {
        call();
        std::puts("accepted");
    } catch (const Refused& error) {
        std::puts(error.what());
    }
}

int main(int, char** argv) {
    const std::string end("\0.png", 5), photo = argv[2] + end, folder = argv[3] + end;
    const auto encoder = uniecs::Encoder::load(argv[1], {"fp32", 1});
    refused<uniecs::ImageError>([&] { encoder.encode({{{}, uniecs::Image::file(photo)}}); });
    refused<uniecs::InputError>([&] { uniecs::SearchEngine::create(folder, encoder); });
    refused<uniecs::InputError>([&] { uniecs::SearchEngine::open(folder, encoder); });
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(app C CXX)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_STANDARD 14)  # the headers' own need is the target's to tell
add_compile_options(-Wall -Wextra -pedantic -Werror)
find_package(uniecs REQUIRED)
foreach(program in_c.c in_cpp.cpp zero_bytes.cpp usage_c.c usage_cpp.cpp)
  get_filename_component(name ${program} NAME_WE)
  add_executable(${name} ${program})
  target_link_libraries(${name} uniecs::uniecs)
endforeach()
"""


def usage(header: Path) -> str:
    """The example on top of a header as a program: the lines of its first comment that are indented."""
    lines = header.read_text().partition("#pragma" if header.suffix == ".hpp" else "*/")[0].splitlines()
    body = [line[5:] for line in lines if line.startswith(("//   ", " *   "))]
    includes = ["stdio.h", "stdlib.h", f"uniecs/{header.name}"]
    return "\n".join([*(f"#include <{name}>" for name in includes), "int main(void) {", *body, "}", ""])


def test_it_is_installed_and_found(cpp_sdk_build: Path, tiny_bundle: Path, tiny_encoder: Any, tmp_path: Path) -> None:
    """A project of somebody else's, in C and in C++, against the installed library."""
    with SearchEngine.create(tmp_path / "a.uniecs", tiny_encoder) as engine:
        engine.add(cpp.as_products(cpp.shop(30)))
        expected = [hit.id for hit in engine.search("red dress", k=3, where={"price": (None, 50)})]
    source, build = tmp_path / "app", tmp_path / "build"
    source.mkdir()
    sdk = Path(__file__).parents[1] / "sdk" / "cpp"
    (source / "in_c.c").write_text(C_PROGRAM)
    shutil.copyfile(sdk / "examples" / "search.cpp", source / "in_cpp.cpp")
    (source / "zero_bytes.cpp").write_text(CPP_PROGRAM)
    (source / "usage_c.c").write_text(usage(sdk / "include" / "uniecs" / "uniecs.h"))
    (source / "usage_cpp.cpp").write_text(usage(sdk / "include" / "uniecs" / "uniecs.hpp"))
    (source / "CMakeLists.txt").write_text(PROJECT)
    for command in (
        ["cmake", "--install", cpp_sdk_build, "--prefix", tmp_path / "usr"],
        ["cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={tmp_path / 'usr'}"],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    where = '{"price": {"$between": [null, 50]}}'
    for program, rest in (("in_c", []), ("in_cpp", ["red dress", "", where])):
        command = [build / program, tmp_path / "a.uniecs", tiny_bundle, *rest]
        environment = os.environ | {"MALLOC_PERTURB_": "165"}  # what is freed does not stay as it was
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert [line if program == "in_c" else line.split("  ")[1] for line in lines][:3] == expected
    assert (tmp_path / "a.uniecs" / "writer.lock").read_text() == ""  # given back by an engine freed at exit
    runs_as_in_the_headers(build, tiny_bundle)
    refuses_zero_bytes_in_paths(build / "zero_bytes", tiny_bundle, tmp_path)


def runs_as_in_the_headers(build: Path, bundle: Path) -> None:
    (build / "bundles").mkdir()
    (build / "bundles" / "mini").symlink_to(bundle)
    Image.new("RGB", (24, 32), "red").save(build / "1.jpg")
    for program in ("usage_cpp", "usage_c"):  # the second reads what the first writes
        done = subprocess.run([build / program], capture_output=True, text=True, check=False, cwd=build)
        assert done.returncode == 0 and done.stdout.split()[1:] == ["1"], (program, done)


def refuses_zero_bytes_in_paths(program: Path, bundle: Path, folder: Path) -> None:
    """The file system would take what is before them: another file."""
    Image.new("RGB", (24, 32), "red").save(folder / "red.png")
    command = [program, bundle, folder / "red.png", folder / "b.uniecs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 3 and all("zero byte" in line for line in lines), done
    assert not (folder / "b.uniecs").exists()


def test_the_library_shows_its_interface_and_no_more(cpp_sdk_build: Path) -> None:
    """What else it has in it must not meet what a program, or another library, has under the same names."""
    command = ["nm", "-DC", "--defined-only", cpp_sdk_build / "libuniecs.so"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = [line.split(maxsplit=2)[2] for line in done.stdout.splitlines()]
    header = (Path(__file__).parents[1] / "sdk" / "cpp" / "include" / "uniecs" / "uniecs.h").read_text()
    assert {name for name in shown if "::" not in name} == set(re.findall(r"(uniecs_\w+)\(", header))
    classes = r"uniecs::(Encoder|SearchEngine|Graph|RowSet)::(?!Impl)|uniecs::to_json"
    errors = r"(typeinfo|typeinfo name|vtable) for uniecs::[\w:]*Error"
    timed = r"uniecs::(image_pixel_values|BertEncoder::encode|ItemFusion::embed)"  # by benchmarks/cpp/latency.cpp
    others = [name for name in shown if "::" in name and not re.match(f"{classes}|{errors}|{timed}", name)]
    assert others == []
