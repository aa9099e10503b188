//! `#[hatchery::main]`: an async `main` in a plain one.

use proc_macro2::TokenStream;
use quote::quote;
use syn::spanned::Spanned as _;
use syn::{Error, ItemFn, LitStr, Result, parse::Parser as _};

use crate::function::{check, private};

pub(crate) fn expand(args: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let Args { threaded, reaps } = parsed(args)?;
    let function: ItemFn = syn::parse2(item)?;
    check(&function)?;
    let ItemFn { attrs, vis, sig, block } = &function;
    let (name, output, private) = (&sig.ident, &sig.output, private());
    if sig.asyncness.is_none() {
        return Err(Error::new(
            sig.fn_token.span(),
            "what `#[hatchery::main]` runs is async: write `async fn main`",
        ));
    }
    if *name != "main" {
        // The process ends with it.
        return Err(Error::new(name.span(), "`#[hatchery::main]` is for `main` alone"));
    }
    if !sig.inputs.is_empty() {
        return Err(Error::new(sig.inputs.span(), "a `main` has no arguments"));
    }
    let reap = reaps.then(|| quote!(#private::reap_first();));
    Ok(quote! {
        #(#attrs)*
        #vis fn #name() #output {
            async fn __main() #output #block
            #reap
            #private::run_main(#threaded, __main())
        }
    })
}

/// What is wrong, and a `main`, so that its absence is not told as well.
pub(crate) fn refused(error: &Error) -> TokenStream {
    let error = error.to_compile_error();
    quote!(#error fn main() {})
}

struct Args {
    /// `flavor = "multi_thread"`, which is the default, or `flavor = "current_thread"`.
    threaded: bool,
    /// `reap`.
    reaps: bool,
}

fn parsed(args: TokenStream) -> Result<Args> {
    let mut parsed = Args { threaded: true, reaps: false };
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("reap") {
            parsed.reaps = true;
            return Ok(());
        }
        if !meta.path.is_ident("flavor") {
            return Err(meta.error("`#[hatchery::main]` takes `flavor` and `reap` alone"));
        }
        let flavor: LitStr = meta.value()?.parse()?;
        parsed.threaded = match flavor.value().as_str() {
            "multi_thread" => true,
            "current_thread" => false,
            _ => {
                let what = "the flavor is \"multi_thread\" or \"current_thread\"";
                return Err(Error::new(flavor.span(), what));
            }
        };
        Ok(())
    });
    parser.parse2(args)?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(args: TokenStream, item: TokenStream) -> String {
        expand(args, item).map_or_else(|error| error.to_string(), |tokens| tokens.to_string())
    }

    #[test]
    fn what_cannot_be_a_main_is_refused_with_the_reason() {
        let main = || {
            quote!(
                async fn main() {}
            )
        };
        for (args, item, why) in [
            (
                quote!(),
                quote!(
                    fn main() {}
                ),
                "is async",
            ),
            (
                quote!(),
                quote!(
                    async fn main(x: u8) {}
                ),
                "no arguments",
            ),
            (
                quote!(),
                quote!(
                    async fn helper() {}
                ),
                "`main` alone",
            ),
            (quote!(workers = 2), main(), "`flavor` and `reap` alone"),
            (quote!(flavor = "green"), main(), "\"current_thread\""),
        ] {
            let told = expanded(args, item);
            assert!(told.contains(why), "{told}");
        }
        assert!(expanded(quote!(), main()).contains("true"));
        assert!(!expanded(quote!(), main()).contains("reap_first"));
        assert!(expanded(quote!(reap, flavor = "current_thread"), main()).contains("reap_first"));
        assert!(expanded(quote!(flavor = "current_thread"), main()).contains("false"));
    }
}
