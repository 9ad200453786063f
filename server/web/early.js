// Runs before the first paint, so that a chosen theme never flashes the other one. A classic script on purpose.
(() => {
  try {
    const theme = localStorage.getItem("kudos.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be forbidden; the system's theme holds.
  }
})();
