"""Files that are taken for pictures: by their names, and up to which size."""

MAX_FILE_BYTES = 256 << 20  # of one image as a file: what is larger is no photograph
# Of picture files: first those that are read, the likeliest photograph first, then those that ingest rejects by name.
READ = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".png", ".gif", ".bmp")
NOT_READ = (".tif", ".tiff", ".heic", ".heif", ".jxl", ".jp2", ".svg", ".ico", ".dng", ".cr2", ".nef", ".arw")
IMAGE_SUFFIXES: tuple[str, ...] = READ + NOT_READ
