// Debian's libhwloc.a asks libudev for names of disks and network cards, and libudev has no static archive. The program
// never enumerates I/O devices, so these weak definitions, which say "no udev here", make the archive link; a real
// libudev wins.
extern "C" {
struct udev;
struct udev_device;

__attribute__((weak)) udev* udev_new() { return nullptr; }
__attribute__((weak)) udev* udev_unref(udev*) { return nullptr; }
__attribute__((weak)) udev_device* udev_device_new_from_subsystem_sysname(udev*, const char*, const char*) {
  return nullptr;
}
__attribute__((weak)) const char* udev_device_get_property_value(udev_device*, const char*) { return nullptr; }
__attribute__((weak)) udev_device* udev_device_unref(udev_device*) { return nullptr; }
}
