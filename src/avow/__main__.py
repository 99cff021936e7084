"""`python -m avow` is the command `avow`."""

from avow.start import main

if __name__ == "__main__":
    main()
