"""`python -m oarlock` is the command `oarlock`."""

from oarlock.cli import main

if __name__ == "__main__":
    main()
