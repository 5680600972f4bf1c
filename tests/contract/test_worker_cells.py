"""What a cell may count on, held by a real worker process without an agent."""

from __future__ import annotations

import textwrap

import pytest

from tests.unit.guest_modules import DrivenWorker


def test_failed_cell_keeps_what_ran_before(worker: DrivenWorker) -> None:
    failed = worker.run("kept = 41\nkept += 1\nlost = 1 / 0\nnever = 1")
    assert failed.status == "error"
    assert failed.error[:2] == ("ZeroDivisionError", "division by zero")
    assert worker.run("kept, 'lost' in globals(), 'never' in globals()").stdout == "(42, False, False)\n"


def test_an_import_within_a_string_is_text(worker: DrivenWorker) -> None:
    code = 'script = """\nimport no_such_module\nfrom os import no_such_name\n"""\nprint(script.count("import"))'
    ran = worker.run(code)
    assert (ran.status, ran.stdout) == ("ok", "2\n")


def test_an_import_runs_where_it_stands(worker: DrivenWorker) -> None:
    ran = worker.run("print('before')\nif False:\n    import no_such_module\nimport no_such_module\nprint('after')")
    assert (ran.stdout, ran.error[0]) == ("before\n", "ModuleNotFoundError")
    assert "line 4" in ran.error[2]


@pytest.mark.parametrize("leave", ["import sys; sys.exit('bye')", "raise SystemExit(3)", "exit()", "quit(1)"])
def test_sys_exit_keeps_the_output_the_variables_and_the_process(worker: DrivenWorker, leave: str) -> None:
    ran = worker.run(f"import os\npid = os.getpid()\nprint('printed')\n{leave}\nprint('never')")
    assert (ran.status, ran.stdout, ran.error[0]) == ("error", "printed\n", "SystemExit")
    assert worker.run("pid == os.getpid()").stdout == "True\n"


def test_globals_and_locals_are_one_namespace(worker: DrivenWorker) -> None:
    code = """
    import dataclasses, math, pickle
    base = 10
    def add(n):
        global calls
        calls = calls + 1
        return base + n
    def counter():
        n = 0
        def step():
            nonlocal n
            n += 1
            return n
        return step
    calls = 0
    step = counter()
    squares = [add(n) for n in range(3) if base]
    class Shape:
        area = [base * k for k in range(2)]
    @dataclasses.dataclass
    class Point:
        x: float
    copy = pickle.loads(pickle.dumps(Point(math.pi)))
    del base
    print(squares, calls, step(), step(), copy, 'base' in globals())
    if __name__ == "__main__":
        print(locals() is globals(), add.__module__)
    """
    ran = worker.run(textwrap.dedent(code))
    assert ran.stdout == "[10, 11, 12] 3 1 2 Point(x=3.141592653589793) False\nTrue __main__\n"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("1 + 1", "2\n"),
        ("x = 3", ""),
        ("x = 3; x", "3\n"),
        ("None", ""),
        ("print('a')", "a\n"),
        ("'é\\n'", "'é\\n'\n"),
        ("for i in range(2): i", ""),
        ("1; 2", "2\n"),
        ("", ""),
        ("# nothing", ""),
        ("if True:\n    5", ""),
        ("for i in range(2): i; i", ""),
        ("1 + 1\n\n", "2\n"),
        ("1 + 1  # a: b; c", "2\n"),
        ("\r", ""),
        ("'a\\\nb'", "'ab'\n"),
        ("globals().get('__annotations__')", ""),
    ],
)
def test_only_the_last_expression_is_shown(worker: DrivenWorker, code: str, shown: str) -> None:
    assert worker.run(code).stdout == shown


def test_the_last_expression_is_evaluated_once(worker: DrivenWorker) -> None:
    assert worker.run("calls = []\ncalls.append(1) or len(calls)").stdout == "1\n"


def test_huge_and_hostile_reprs_are_bounded_and_survived(worker: DrivenWorker) -> None:
    assert "999,800 more" in worker.run("list(range(1_000_000))").stdout
    ran = worker.run("class Bad:\n    def __repr__(self): 1 / 0\nBad()")
    assert ran.status == "ok"
    assert ran.stdout == "<Bad object; its repr raised ZeroDivisionError: division by zero>\n"
    assert len(worker.run("'x' * 50_000_000").stdout) < 70_000


def test_a_traceback_shows_the_cells_lines_and_no_frames_of_the_guest(worker: DrivenWorker) -> None:
    worker.run("def inner(value):\n    return {}[value]")
    trace = worker.run(
        "try:\n    inner('k')\nexcept KeyError as error:\n    raise ValueError('outer') from error"
    ).error[2]
    assert "return {}[value]" in trace
    assert "inner('k')" in trace
    assert "direct cause" in trace
    assert trace.endswith("ValueError: outer\n")
    assert "worker_" not in trace


@pytest.mark.parametrize(
    ("code", "name", "part"),
    [
        ("def f(:\n  pass", "SyntaxError", "def f(:\n          ^"),
        ("  x = 1", "IndentationError", "unexpected indent"),
        ("1 +", "SyntaxError", '  File "<cell '),
        ("return 5", "SyntaxError", "'return' outside function"),
        ("1 = x", "SyntaxError", "cannot assign to literal"),
        ("ok = 1\nx = = 2", "SyntaxError", "line 2"),
        ("'\\0'\n\0", "SyntaxError", "null bytes"),
        ("import sys\nsys.exit(1)", "SystemExit", "end the cell only"),
        ("exit()", "SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('odd')", "BaseException", "odd"),
        ("def f(): f()\nf()", "RecursionError", "Previous line repeated"),
        ("input('name?')", "RuntimeError", "input() is not available"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E", "str() of E raised"),
        ("raise ExceptionGroup('many', [ValueError(n) for n in range(3)])", "ExceptionGroup", "ValueError: 2"),
        ("raise ValueError('x' * 1_000_000)", "ValueError", "characters left out"),
        (
            "e = None\nfor n in range(5000):\n    f = ValueError(n); f.__context__ = e; e = f\nraise e",
            "ValueError",
            "4999",
        ),
        ("import asyncio\nasync def f(): raise OSError('in a task')\nawait f()", "OSError", "await f()"),
    ],
)
def test_every_exception_is_reported_as_text(worker: DrivenWorker, code: str, name: str, part: str) -> None:
    ran = worker.run(code)
    assert ran.status == "error"
    assert ran.error[0] == name
    assert part in ran.error[2] or part in ran.error[1]
    assert "worker_" not in ran.error[2]
    assert "During handling" not in ran.error[2]
    assert len(ran.error[2]) < 70_000
    assert worker.run("'alive'").stdout == "'alive'\n"


def test_nothing_runs_when_the_last_line_does_not_compile(worker: DrivenWorker) -> None:
    assert worker.run("print('ran')\nreturn 5").stdout == ""


def test_top_level_await_and_asyncio_run_both_work(worker: DrivenWorker) -> None:
    code = "import asyncio\nasync def one(n):\n    await asyncio.sleep(0)\n    return n\n"
    assert worker.run(code + "await asyncio.gather(one(1), one(2))").stdout == "[1, 2]\n"
    assert worker.run("asyncio.run(one(3))").stdout == "3\n"
    assert worker.run("z = await one(6)").status == "ok"
    assert worker.run("z + await one(1)").stdout == "7\n"
    assert worker.run("x = await one(4)\n[await one(n) for n in range(2)] + [x]").stdout == "[0, 1, 4]\n"
    assert worker.run("async with asyncio.timeout(9):\n    y = await one(5)\nawait one(y)").stdout == "5\n"


def test_future_features_last_as_in_a_repl() -> None:
    driven = DrivenWorker()
    try:
        driven.open()
        driven.run("from __future__ import annotations")
        assert driven.run("def f(x: Undefined): pass\nf.__annotations__").stdout == "{'x': 'Undefined'}\n"
    finally:
        driven.close()


def test_scaffold_names_are_restored_but_a_users_own_names_stay(worker: DrivenWorker) -> None:
    worker.run(
        "llm_query = FINAL = None\ndel SHOW_VARS\nanswer = 'mine'\nhistory = [1]\nimport builtins\nbuiltins.input = 1"
    )
    ran = worker.run("callable(llm_query), callable(FINAL), callable(SHOW_VARS), answer, history, callable(input)")
    assert ran.stdout == "(True, True, True, 'mine', [1], True)\n"


def test_a_cleared_namespace_is_usable_again() -> None:
    driven = DrivenWorker()
    try:
        driven.open()
        assert driven.run("globals().clear()").status == "ok"
        assert driven.run("print(__name__, len([1]), callable(llm_query))").stdout == "__main__ 1 True\n"
    finally:
        driven.close()


def test_closed_and_redirected_streams_are_whole_in_the_next_cell(worker: DrivenWorker) -> None:
    worker.run("import io, os, sys\nsys.stdout = io.StringIO()\nprint('hidden')")
    assert worker.run("print('seen')").stdout == "seen\n"
    worker.run("sys.stdout.close(); os.close(1); os.close(2)")
    assert worker.run("print('again'); os.system('echo child')").stdout == "again\nchild\n0\n"
    worker.run("os.dup2(os.open('/dev/null', os.O_WRONLY), 1)")
    assert worker.run("print('back')").stdout == "back\n"
    assert worker.run("sys.stdout = None; print('nowhere'); 5").status == "ok"
    assert worker.run("5").stdout == "5\n"


def test_prints_of_earlier_cells_threads_are_left_out_and_counted(worker: DrivenWorker) -> None:
    worker.run(
        "import threading\ngo, done = threading.Event(), threading.Event()\n"
        "def late():\n    go.wait(); print('late'); done.set()\nthreading.Thread(target=late).start()"
    )
    ran = worker.run("go.set(); done.wait(); print('now')")
    assert ran.stdout == "now\n"
    assert ran.stderr == "[5 characters printed by threads of earlier cells are left out]\n"
    own = worker.run("t = threading.Thread(target=print, args=('own',)); t.start(); t.join()")
    assert own.stdout == "own\n"


@pytest.mark.parametrize(
    "code",
    [
        "import codecs, sys; sys.stdout = codecs.getwriter('utf-8')(sys.stdout.detach())",
        "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='utf-8')",
        "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')",
        "import weakref\nclass A: pass\na = A(); p = weakref.proxy(a); del a",
        "class P:\n    @property\n    def __class__(self): raise RuntimeError('no')\np = P()",
        "class E(BaseException):\n    def __str__(self): raise E\nraise E",
    ],
)
def test_variables_survive_what_ordinary_code_does_to_streams_and_classes(worker: DrivenWorker, code: str) -> None:
    worker.run(f"kept = 1\n{code}")
    for _ in range(2):
        assert worker.run("print(kept)").stdout == "1\n"


def test_the_threads_of_a_pool_print_for_the_cell_that_gives_them_work(worker: DrivenWorker) -> None:
    worker.run("from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)")
    tasks = "import asyncio\nawait asyncio.to_thread(print, 'task')\ndone = list(pool.map(print, ['pool']))"
    for _ in range(3):
        assert worker.run(tasks).stdout == "task\npool\n"
    late = "import threading\ngo = threading.Event()\ndef late():\n    go.wait(); print('late')\nf = pool.submit(late)"
    worker.run(late)
    ran = worker.run("go.set(); f.result(); print('mine')")
    assert ran.stdout == "mine\n"
    assert "5 characters printed by threads of earlier cells" in ran.stderr


def test_surrogates_and_odd_text_can_be_printed(worker: DrivenWorker) -> None:
    assert worker.run("print('\\ud800 \\x00 é')").stdout == "\\ud800 \x00 é\n"


def test_variables_are_listed_newest_first_with_sizes_and_without_running_their_code() -> None:
    driven = DrivenWorker()
    try:
        driven.open()
        code = (
            "import math\nt = 'x' * 34567\nl = [1]\n_private = 1\ndef f(): pass\n"
            "class L(list):\n    def __len__(self): raise SystemExit\nbad = L()"
        )
        ran = driven.run(code)
        assert ran.status == "ok"
        assert ran.order == ["bad", "L", "f", "l", "t"]
        assert ran.names["t"] == ("str", "34,567 characters")
        assert ran.names["l"] == ("list", "1 item")
        assert ran.names["f"] == ("function", "")
        assert ran.names["bad"] == ("L", "")
        assert len(driven.run("globals().update({f'v{n}': n for n in range(1000)})").order) == 200
        shown = driven.run("SHOW_VARS()").stdout
        assert "v999: int" in shown
        assert "'" not in shown
    finally:
        driven.close()


def test_a_forked_child_cannot_ask_or_end_the_cell(worker: DrivenWorker) -> None:
    code = """
import os, sys
pid = os.fork()
if pid == 0:
    try:
        llm_query("from a child")
    except RuntimeError as error:
        print("child:", "threads" in str(error), flush=True)
else:
    os.waitpid(pid, 0)
    print("parent")
"""
    asked = len(worker.asked)
    assert worker.run(code).stdout == "child: True\nparent\n"
    assert len(worker.asked) == asked


def test_multiprocessing_works_with_functions_of_the_cell(worker: DrivenWorker) -> None:
    code = (
        "import multiprocessing as mp, math\ndef square(n): return n * n\n"
        "with mp.get_context('fork').Pool(2) as pool: a = pool.map(square, range(4))\n"
        "with mp.get_context('spawn').Pool(1) as pool: b = pool.map(math.sqrt, [4, 9])\n(a, b)"
    )
    ran = worker.run(code)
    assert ran.stdout == "([0, 1, 4, 9], [2.0, 3.0])\n", ran


def test_a_text_that_is_shown_may_be_of_a_class_of_its_own(worker: DrivenWorker) -> None:
    code = (
        "class Text(str):\n    def __add__(self, other): raise RuntimeError\n"
        "class Shown:\n    def __repr__(self): return Text('shown')\nShown()"
    )
    ran = worker.run(code)
    assert (ran.status, ran.stdout) == ("ok", "shown\n")
