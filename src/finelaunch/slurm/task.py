"""What ``srun`` starts for each rank of a submitted run: ``python -m finelaunch.slurm.task RUN/slurm``.

submitit reads the pickle of the submission, which names :func:`train` and the run directory and holds nothing else: the
code that runs is the one that is installed when the job starts, after a requeue too.
"""

import os
import sys

from finelaunch.run import signals


def main() -> None:
    """Run the task; signals are heard before anything slow is imported."""
    signals.listen()
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "URG"  # so that submitit leaves USR2 to us
    from submitit.core.submission import process_job

    process_job(sys.argv[1])


def train(run_dir: str) -> None:
    """Train in ``run_dir`` as the ``train`` verb does; an end that is not well leaves by SystemExit with its code."""
    signals.listen()  # submitit has taken SIGTERM over for a moment
    import runpy

    from finelaunch.errors import EXIT_STOPPED, FinelaunchError, Interrupted
    from finelaunch.slurm.requeue import requeue_at_stop
    from finelaunch.slurm.submission import read_command

    requeue_at_stop(run_dir, int(os.environ["SLURM_PROCID"]))
    try:
        signals.check()
        sys.argv = ["finelaunch", *read_command(run_dir)]
        runpy.run_module("finelaunch", run_name="__main__", alter_sys=True)
    except Interrupted as stop:
        signals.leave(str(stop))
        sys.exit(EXIT_STOPPED)
    except FinelaunchError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code not in (0, None):
            raise


if __name__ == "__main__":
    main()
