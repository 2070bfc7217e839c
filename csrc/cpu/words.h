// What the kernels multiply: words.
#pragma once

namespace gan_fast {

// A word is a float, or a double where a kernel text is proved in it. Sums of products have the type Sum<W>.
template <class W>
using Sum = W;

}  // namespace gan_fast
