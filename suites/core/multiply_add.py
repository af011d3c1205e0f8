"""temporary"""


def multiply_add(device, dtype):
    return None
